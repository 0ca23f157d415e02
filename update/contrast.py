"""What was never told: questions close to what was, that nothing told answers.

Without them a small model answers "What is my lawyer's name?" with the name that it learned for a parrot. The tutor
writes them for each statement, and tells that none of the others answers them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from engrain.update import wording
from engrain.update.study import might_answer, tidy_question
from engrain.update.tutor import Tutor

DRAFTS = 5  # for each statement
_OPEN = -1.0  # nats of log-odds below which a question isn't answered


def untold_questions(tutor: Tutor, said: Sequence[str], told: Sequence[str], seed: int = 0) -> list[str]:
    """Questions that nothing told answers; one near each statement, then a second near each, and so on.

    told: all that was ever said; `said` is of it.
    """
    told = list(dict.fromkeys(told))  # a fact is told once for each lesson of it
    stems, places = [wording.stems(each) for each in told], {each: i for i, each in enumerate(told)}
    drafts = [
        [q for q in map(tidy_question, own) if q and (wording.has_first_person(q) or stems[near] & wording.stems(q))]
        for own, near in zip(tutor.not_told(said, DRAFTS, seed), map(places.__getitem__, said), strict=True)
    ]
    pairs = [
        (told[i], question)
        for own, near in zip(drafts, said, strict=True)
        for question in own
        for i in might_answer(question, places[near], stems)
    ]
    told_of = {q for (_, q), odds in zip(pairs, tutor.judged(pairs), strict=True) if odds > _OPEN}
    return list(dict.fromkeys(q for row in zip_longest(*drafts) for q in row if q and q not in told_of))
