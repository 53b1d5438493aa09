"""The online side: attribution requests over HTTP against index directories."""
