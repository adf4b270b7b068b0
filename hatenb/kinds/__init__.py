"The kinds of answers: a file in this folder is one, registered when the package is imported"
import importlib, pkgutil

from hatenb.kinds.base import (  # noqa: F401
    Head, HeadConfig, Kind, Loss, Metric, best_threshold, count_answers, gold_columns, has_gold, kind_of, kinds,
    log_odds, logs, loss_class, loss_vector, loss_weights, losses, make_head, make_loss, mlp, pool_first, pool_mean,
    poolings, refuse_posts, there)

for _module in pkgutil.iter_modules(__path__, __name__ + '.'): importlib.import_module(_module.name)

from hatenb.kinds.multiclass import vote_divergences  # noqa: E402, F401
from hatenb.kinds.tokens import rationale_table, tokens_to_words, top, words_to_tokens  # noqa: E402, F401
