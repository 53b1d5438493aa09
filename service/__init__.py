"""The online side: attribution requests over HTTP against index directories."""

__version__ = "0.1.0"
