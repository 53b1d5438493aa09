"""The HTTP surface, one file for each resource; every route only reads the request, asks the engine and answers."""
