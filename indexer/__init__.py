"""The offline side: a trained model and its training set become an index directory of sketches."""
