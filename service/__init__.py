"""The online side: attribution requests over HTTP against index directories."""

from indexer import __version__ as __version__
