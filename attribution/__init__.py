"""Gaussian-process attribution mathematics: posteriors, information in nats, greedy rules. Torch and numpy, no files.

Rules, each a generator of steps: :func:`select_infogain_approx` (a vector database), :func:`select_infogain` and
:func:`select_infoloss` (exact), :func:`select_many` (many queries). :func:`acquire` gives the exact nats of picks made
elsewhere, :class:`SetPosterior` what a whole training set knows and what leaving examples out costs.
"""

from attribution.acquired import AcquiredSet, acquire
from attribution.candidates import Candidates, DenseCandidates
from attribution.infogain import select_infogain
from attribution.infogain_approx import select_infogain_approx
from attribution.infoloss import select_infoloss
from attribution.information import info_gain, info_gain_nats, info_loss, info_loss_nats
from attribution.many_queries import select_many, select_many_infoloss
from attribution.posterior import (
    QueryPosterior,
    SetPosterior,
    Spectrum,
    cross_products,
    spectrum_of,
    spectrum_of_blocks,
)
from attribution.search import DenseSearch, Search, SearchResults
from attribution.steps import ManyStep, Step

__all__ = [
    "AcquiredSet",
    "Candidates",
    "DenseCandidates",
    "DenseSearch",
    "ManyStep",
    "QueryPosterior",
    "Search",
    "SearchResults",
    "SetPosterior",
    "Spectrum",
    "Step",
    "acquire",
    "cross_products",
    "info_gain",
    "info_gain_nats",
    "info_loss",
    "info_loss_nats",
    "select_infogain",
    "select_infogain_approx",
    "select_infoloss",
    "select_many",
    "select_many_infoloss",
    "spectrum_of",
    "spectrum_of_blocks",
]
