"""Answers on an open index, without a server: which training examples inform a query, and by how much."""

from indexer.attributor.answers import (
    Answer,
    Hit,
    IndexReference,
    Information,
    MemberScores,
    QueryFacts,
    Represents,
    Scores,
    SearchFacts,
    SetScores,
    Start,
)
from indexer.attributor.asking import Attributor
from indexer.attributor.errors import QuestionError
from indexer.attributor.group_nats import GroupNats, GroupQuestion
from indexer.attributor.groups import Group, Groups
from indexer.attributor.questions import CandidateFilter, QuerySketch, Question
from indexer.attributor.selection import Attribution

__all__ = [
    "Answer",
    "Attribution",
    "Attributor",
    "CandidateFilter",
    "Group",
    "GroupNats",
    "GroupQuestion",
    "Groups",
    "Hit",
    "IndexReference",
    "Information",
    "MemberScores",
    "QueryFacts",
    "QuerySketch",
    "Question",
    "QuestionError",
    "Represents",
    "Scores",
    "SearchFacts",
    "SetScores",
    "Start",
]
