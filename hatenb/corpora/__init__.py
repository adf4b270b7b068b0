"The corpora: a file in this folder is one, registered when the package is imported"
import importlib, pkgutil

from hatenb.corpora.registry import (  # noqa: F401
    Corpus, Question, RemoteFile, add_corpus, corpora, corpora_table, corpus_checksum, download, fetch, github_file,
    load_corpus, locate, places, text_question)
from hatenb.corpora.tables import dataset_of, gc_paused, split_of  # noqa: F401
from hatenb.corpora.hatexplain import (  # noqa: F401
    LABELS, PAPER_TARGETS, TARGETS, gold, hatexplain_features, hatexplain_questions, majority, read_hatexplain)
from hatenb.corpora.mhs import read_mhs, read_mhs_share  # noqa: F401
from hatenb.corpora.mini import make_mini  # noqa: F401
from hatenb.corpora.showing import mask, show  # noqa: F401
from hatenb.corpora.statistics import corpus_statistics, fleiss_kappa, frequencies  # noqa: F401

gold_columns = ("label","label_dist","target","target_dist","rationale_any","rationale_majority","score","score_gt_0")  # a bridge
for _module in pkgutil.iter_modules(__path__, __name__ + '.'): importlib.import_module(_module.name)
