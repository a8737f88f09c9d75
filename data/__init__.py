"""Datasets, first stages, and the files that rankings are read from and written to."""

if __name__ != "rerank.data":
    raise ImportError("import this package as rerank.data")

from rerank.data.beir import read_beir, read_corpus
from rerank.data.bm25 import BM25
from rerank.data.catalogue import Catalogue, catalogue
from rerank.data.dataset import Corpus, Dataset
from rerank.data.dense import Dense
from rerank.data.files import open_text
from rerank.data.irds import read_irds
from rerank.data.jsonl import read_lists, read_queries
from rerank.data.load import check_dataset, list_samples, load_dataset
from rerank.data.lucene import Lucene
from rerank.data.rank_llm import read_rank_llm, write_rank_llm
from rerank.data.svmlight import Features, read_features, write_features
from rerank.data.trec import Qrels, Run, read_qrels, read_run, write_run

__all__ = [
    "BM25",
    "Catalogue",
    "Corpus",
    "Dataset",
    "Dense",
    "Features",
    "Lucene",
    "Qrels",
    "Run",
    "catalogue",
    "check_dataset",
    "list_samples",
    "load_dataset",
    "open_text",
    "read_beir",
    "read_corpus",
    "read_features",
    "read_irds",
    "read_lists",
    "read_qrels",
    "read_queries",
    "read_rank_llm",
    "read_run",
    "write_features",
    "write_rank_llm",
    "write_run",
]
