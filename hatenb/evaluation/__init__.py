"Every metric from stored predictions alone"
from hatenb.evaluation.bias import bias_populations, bias_table, generalised_mean  # noqa: F401
from hatenb.evaluation.predictions import (  # noqa: F401
    as_stored, check_predictions, check_split, definitions, evaluate, evaluate_origins, join_predictions,
    load_predictions, main_metrics, metric_of, save_predictions, task_statistics, watched_metrics, with_gold,
    without_gold)
from hatenb.evaluation.calibration import (  # noqa: F401
    answered_tasks, apply_temperature, apply_thresholds, choose_thresholds, decisions, disagreement, evaluate_at,
    fit_temperature, fit_thresholds, reliability, reliability_figure)
from hatenb.evaluation.comparison import (  # noqa: F401
    compare, mcnemar, mean_relative_gain, planned_family, seed_groups)
from hatenb.evaluation.errors import browse, post_losses, worst_posts  # noqa: F401

