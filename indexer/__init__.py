"""The offline side: a trained model and its training set become an index directory of sketches."""

__version__ = "0.1.0"
