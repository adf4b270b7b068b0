"What asks a trained model again: explanations of its answers, functional tests, posts of other corpora, disguised posts"
from hatenb.asking.explanations import (  # noqa: F401
    evaluate_explainers, explain, explain_run, explained_posts, explainers, explanations_table, faithfulness, levels,
    metric_title, plausibility, posts_with_marks, task_of)
from hatenb.asking.disguises import (  # noqa: F401
    costly_disguises, detector_scores, disguise_metrics, disguise_record, disguised, disguises_figure,
    disguises_table, disguises_text, share_read_otherwise, ways, worst_loss)
from hatenb.asking.functional import (  # noqa: F401
    card_tables, functional_metrics, functional_record, functional_run, functional_text, hatecheck_table, linear_record,
    linear_scores, model_scores, toxic_posts, toxic_question_of, transfer_metrics)
