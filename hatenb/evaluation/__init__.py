"Every metric from stored predictions alone"
from hatenb.evaluation.bias import bias_populations, bias_table, generalised_mean  # noqa: F401
from hatenb.evaluation.predictions import (  # noqa: F401
    check_predictions, check_split, definitions, evaluate, join_predictions, load_predictions, main_metrics, metric_of,
    save_predictions, task_statistics, watched_metrics, with_gold, without_gold)
from hatenb.evaluation.calibration import (  # noqa: F401
    answered_tasks, apply_temperature, apply_thresholds, choose_thresholds, decisions, disagreement, evaluate_at,
    fit_temperature, fit_thresholds, reliability, reliability_figure)
from hatenb.evaluation.comparison import (  # noqa: F401
    compare, compare_gain, mcnemar, mean_relative_gain, over_seeds, paired_bootstrap, planned_family, seed_groups)
from hatenb.evaluation.errors import browse, post_losses, worst_posts  # noqa: F401

# a bridge for chapters that are not yet moved; goes when the last is
from hatenb.bootstrap import (  # noqa: E402, F401
    auc_of, calibration_bins, counted_as as counted, ece_of, estimates, f1_of, mean_of, rank_correlation_of, recentred,
    remembered as shared, resamples, subset_of as on)
from hatenb.evaluation.predictions import check_predictions as check  # noqa: E402, F401
from hatenb.kinds import Metric, kinds as _kinds, rationale_table, top, tokens_to_words  # noqa: E402, F401
main_metric = {name: k.main for name,k in _kinds.items()}

def word_probabilities(row): return tokens_to_words(row.rationale_token_prob, row.rationale_token_word, len(row.rationale_any))

class _Metrics(dict):
    def __missing__(self, kind):
        from hatenb.corpora import corpora
        found = {}
        for c in corpora.values():
            for q in c.questions:
                if q.kind == kind: found |= _kinds[kind]().metrics(q)
        return found
    def items(self): return [(k, self[k]) for k in _kinds]
metrics = _Metrics()
_definitions = definitions
def definitions(columns=None):
    if columns is None: columns = ['hatexplain/label', 'hatexplain/target', 'hatexplain/rationale', 'mhs/score', 'hatexplain/text']
    return _definitions(columns)
