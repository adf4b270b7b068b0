"The corpora: a file in this folder is one, registered when the package is imported"
import importlib, pkgutil

from hatenb.corpora.registry import (  # noqa: F401
    Corpus, Question, RemoteFile, add_corpus, check_answers, corpora, corpora_table, corpus_checksum, download, fetch,
    github_file, load_corpus, locate, places, posts_of_corpus, text_question, whereabouts)
from hatenb.corpora.tables import dataset_of, gc_paused, split_of  # noqa: F401
from hatenb.corpora.communities import (  # noqa: F401
    COMMUNITIES, communities_in, communities_table, community_names, community_of, community_outputs, community_row)
from hatenb.corpora.hatexplain import (  # noqa: F401
    LABELS, PAPER_TARGETS, TARGETS, gold, hatexplain_features, hatexplain_questions, majority, read_hatexplain)
from hatenb.corpora.mhs import read_mhs, read_mhs_share  # noqa: F401
from hatenb.corpora.mini import make_mini  # noqa: F401
from hatenb.corpora.pools import declare_pool, make_pool, pool_declaration, pool_duplicates  # noqa: F401
from hatenb.corpora.showing import show  # noqa: F401
from hatenb.corpora.statistics import corpus_statistics, fleiss_kappa, write_statistics  # noqa: F401

for _module in pkgutil.iter_modules(__path__, __name__ + '.'): importlib.import_module(_module.name)
