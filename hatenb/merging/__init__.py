"Adapters trained apart, made into one: rules that work on what an adapter does to a layer, not on how it is stored."
# ruff: noqa: F401
from .updates import Update, concatenate, from_svd, svd_of, truncate
from .rules import (average, check_rule, merge_needs, merge_rules, merge_rules_table, merge_updates, rule_options,
                    task_arithmetic)
from .entries import dare_linear, dare_ties, drop, elected_mean, magnitude_prune, thin, ties, trim, weighted_mean
from .directions import common_basis, core_space, core_space_merge, iso_c, iso_cts, knots, nearest_orthogonal, tsvm
from .inputs import (collectors, freeze_A, input_grams, nsc, null_space_coefficients, null_space_ratio, regmean,
                     regmean_pp, sample_batches, start_orthogonal, start_shared, updates_added)
from .adapters import add_lora, lora_updates, merge_adapters, search_coefficients
from .measures import (cosine, distance, inner, interference, interference_figure, short_layer, sign_conflicts,
                       subspace_overlap, truncation_errors)
