"""What an update is made of when something was taught before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from engrain.device.interactions import Interaction
from engrain.device.registry import Version
from engrain.device.runtime import Runtime
from engrain.update import gate
from engrain.update.curriculum import EPOCHS, REPLAY, REPLAY_WEAK, Curriculum, Past, Probe, replay, taught_before
from engrain.update.exam import Exam
from engrain.update.gate import came_back
from engrain.update.reader import Reader
from engrain.update.study import ASKED, OFTEN, Fact, Lesson, answered, spread, to_examples
from engrain.update.supersede import _Doubt, _is_news, restated, standing, superseded, with_new_value
from engrain.update.tutor import Tutor

CAR, TEA = "You drive a yellow Dyane.", "Your tea is green."
PAST = [
    *(Lesson(f"Which car {i}?", CAR, "fact", (1,)) for i in range(30)),
    *(Lesson(f"Which tea {i}?", TEA, "fact", (2,)) for i in range(50)),
    *[Lesson("Say hi.", "Hi.", "correction", (3,))] * 4,
]


def test_replay_has_other_questions_for_every_epoch() -> None:
    chosen = replay(PAST, {TEA}, seed=0)
    kinds = Counter((lesson.answer, lesson.kind) for lesson in chosen)
    assert kinds == {(CAR, "replay"): EPOCHS * REPLAY, (TEA, "replay"): EPOCHS * REPLAY_WEAK, ("Hi.", "correction"): 4}
    assert len({lesson.question for lesson in chosen}) == EPOCHS * (REPLAY + REPLAY_WEAK) + 1
    assert replay(PAST, {TEA}, seed=1) != chosen


def test_what_is_replaced_leaves_the_past() -> None:
    past = Past(tuple(PAST), (Probe("Which car?", ("dyane",), (1,), CAR), Probe("Tea?", ("green",), (2,), TEA)))
    left = past.without({CAR})
    assert {lesson.answer for lesson in left.lessons} == {TEA, "Hi."}
    assert [probe.answer for probe in left.probes] == [TEA]


class Examiner:
    """A tutor with fixed log-odds: `sure` where a statement answers, `ended` where a message ends one.

    answers: words of a statement by a question's second; ends: words of a message by the statement that it ends.
    """

    def __init__(
        self, answers: dict[str, str], ends: dict[str, str] | None = None, sure: float = 3.0, ended: float = -9.0
    ) -> None:
        self.answers, self.ends, self.sure, self.ended = answers, ends or {}, sure, ended
        self.heard: set[tuple[str, str]] = set()
        self.weighed: set[tuple[str, str]] = set()

    def asked(self, statements: Sequence[str], *_: object) -> list[list[str]]:
        return [[] for _ in statements]  # grammar asks

    def judged(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        self.heard |= set(pairs)
        return np.array([self.sure if self.answers.get(q.split()[1], "-") in s else -2.0 for s, q in pairs])

    def standing(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        self.weighed |= set(pairs)
        return np.array([self.ended if s in self.ends and self.ends[s] in message else 4.0 for s, message in pairs])


class Reading:
    """A reader of fixed statements, by words of a text and of what was told before it in the conversation."""

    def __init__(self, tells: dict[tuple[str, str], str] | None = None) -> None:
        self.tells = tells or {}

    def told(self, messages: Sequence[tuple[str, str]]) -> list[list[str]]:
        found = []
        for i, (conversation, text) in enumerate(messages):
            before = " ".join(t for c, t in messages[:i] if c == conversation)
            found.append([tells for (then, now), tells in self.tells.items() if then in before and now in text])
        return found

    def likelihoods(self, each: Sequence[tuple[str, str, str]]) -> list[float]:
        return [-1.0 if statement in self.tells.values() else -99.0 for _, _, statement in each]


def replaced_by(
    tutor: Examiner, facts: Sequence[Fact], message: Interaction, reader: Reading | None = None
) -> dict[str, Fact | None]:
    return superseded(cast(Tutor, tutor), cast(Reader, reader or Reading()), facts, [message], PAST)


CHANGE = Interaction(7, "c", 0.0, None, "Sold the Dyane, we drive a Volvo. Lovely day!", "Nice.", "m")
VOLVO = Fact("We drive a Volvo.", "You drive a Volvo.", ("volvo",), (7,))
LOVELY = Fact("It's a lovely day.", "It's a lovely day.", ("lovely",), (7,))


def test_what_a_message_ends_is_replaced_by_what_it_tells() -> None:
    tutor = Examiner({"car": "Volvo", "tea": "green"}, ends={CAR: "Sold the Dyane"})
    assert replaced_by(tutor, [LOVELY, VOLVO], CHANGE) == {CAR: VOLVO}
    assert {statement for statement, _ in tutor.heard} == {LOVELY.said, VOLVO.said, "Sold the Dyane, we drive a Volvo."}
    assert all("car" in question for _, question in tutor.heard)
    assert replaced_by(Examiner({}, tutor.ends), [], CHANGE) == {CAR: None}  # over, and nothing new
    assert {(CAR, CHANGE.user), (TEA, CHANGE.user)} == tutor.weighed


@pytest.mark.parametrize(("sure", "expected"), [(3.0, {CAR}), (-3.0, set())])
def test_a_doubtful_end_is_one_where_a_new_fact_answers(sure: float, expected: set[str]) -> None:
    tutor = Examiner({"car": "Volvo"}, {CAR: "Dyane"}, sure, ended=-4.0)
    assert set(replaced_by(tutor, [VOLVO], CHANGE)) == expected


def test_what_is_still_true_stays() -> None:
    tutor = Examiner({"car": "Volvo"})
    assert replaced_by(tutor, [VOLVO], CHANGE) == {}


def test_a_statement_does_not_replace_itself() -> None:
    tutor = Examiner({"car": "Dyane"}, ends={CAR: "Dyane"})
    again = Interaction(7, "c", 0.0, None, "I drive a yellow Dyane.", "Nice.", "m")
    assert replaced_by(tutor, [Fact("I drive a yellow Dyane.", CAR, (), (7,))], again) == {}


def test_what_takes_an_old_place_is_told_as_fully() -> None:
    locker, message = "Your locker at work is number 118.", replace(CHANGE, user="My locker moved: number 204 now.")
    short, other = (Fact(said, said, ("204",), (7,)) for said in ("My locker is number 204 now.", "My day is long."))
    past = [Lesson(f"Which locker at work is mine {i}?", locker, "fact", (1,)) for i in range(3)]
    tutor = Examiner({"locker": "work"}, ends={locker: "moved"})
    after = "My locker at work is number 118."
    reader = Reading({(after, "204"): "My locker at work is number 204.", (after, "moved"): f"{after} 204."})
    found = superseded(cast(Tutor, tutor), cast(Reader, reader), [short, other], [message], past)
    full = found[locker]
    assert full and (full.said, full.source) == ("My locker at work is number 204.", (1, 7))
    assert restated([short, other], found) == [other, full]
    assert restated([full, other], found) == [full, other]


def test_what_takes_an_old_place_may_be_the_sentence_as_it_was_said() -> None:
    locker, message = "Your locker is number 118.", replace(CHANGE, user="My locker moved: it is number 204 now. Nice!")
    moved = Fact("My locker moved.", "Your locker moved.", ("moved",), (7,))
    past = [Lesson("Which locker is mine?", locker, "fact", (1,))]
    tutor = Examiner({"locker": "204"}, ends={locker: "moved"})
    found = superseded(cast(Tutor, tutor), cast(Reader, Reading()), [moved], [message], past)
    said = found[locker]
    assert said and said.said == "My locker moved: it is number 204 now."
    assert restated([moved], found) == [said]  # says no more


def test_what_is_misread_holds_no_end_up_where_the_new_value_is_told() -> None:
    locker, message = "Your locker is number 118.", replace(CHANGE, user="My locker moved: it is number 204 now.")
    misread = Fact("My locker moved to number 204.", "Your locker moved to number 204.", ("204",), (7,))
    past = [Lesson("Which locker is mine?", locker, "fact", (1,))]
    tutor = Examiner({"locker": "My locker is number 204"}, ends={locker: "moved"}, ended=-4.5)

    def found(reader: Reading) -> dict[str, Fact | None]:
        return superseded(cast(Tutor, tutor), cast(Reader, reader), [misread], [message], past)

    assert found(Reading()) == {}  # what was read answers none of the old questions
    new = found(Reading({("", "never"): "My locker is number 204."}))[locker]
    assert new and (new.said, new.source) == ("My locker is number 204.", (1, 7))


def test_what_takes_an_old_place_may_be_the_old_statement_with_a_new_value() -> None:
    made = with_new_value("My locker at work is number 118.", "My locker moved: number 204 now.")
    assert {f"My locker at work is number {way}." for way in ("moved", "moved: number 204", "204")} <= set(made)
    assert "My locker at 204 is number 118." in made and not any("now" in way for way in made)
    made = with_new_value("We drive a yellow Dyane, a loud one.", "We drive the white Volvo.")
    assert "We drive a white Volvo, a loud one." in made
    assert with_new_value("We drive a Dyane.", "We drive it.") == []
    sold = ("We drive a red Dyane.", "Sold the Dyane, we have a Fiat now.")
    assert "We drive a Fiat." not in with_new_value(*sold) and "We drive a Fiat." in with_new_value(*sold, {"dyane"})


def test_of_two_changes_the_later_counts() -> None:
    tutor = Examiner({"car": "Volvo"}, ends={CAR: "Dyane"})
    later = replace(CHANGE, id=8, user="The Dyane is gone, it's a Volvo Amazon.")
    amazon = Fact("We drive a Volvo Amazon.", "You drive a Volvo Amazon.", ("amazon",), (8,))
    found = superseded(cast(Tutor, tutor), cast(Reader, Reading()), [VOLVO, amazon], [later, CHANGE], PAST)
    assert found == {CAR: amazon}
    moved, other = replace(later, user="Its Dyane has moved."), Fact("My car moved.", "Your car moved.", (), (8,))
    found = superseded(cast(Tutor, tutor), cast(Reader, Reading()), [VOLVO, other], [moved, CHANGE], PAST)
    assert found == {CAR: VOLVO}  # the other answers none of the old questions


def test_what_was_corrected_in_the_same_conversation_is_not_learned() -> None:
    texts = ["The rent is 385.", "Thanks.", "Sorry, 358.", "It's due on Friday.", "We meet at ten."]
    talk = [Interaction(i, "c", 0.0, None, text, "Ok.", "m") for i, text in enumerate(texts)]
    wrong, right = (Fact(f"The rent is {n}.", f"The rent is {n}.", (n,), (i,)) for i, n in ((0, "385"), (2, "358")))
    corrected = Examiner({}, ends={wrong.said: "Sorry"})
    elsewhere = [replace(it, conversation=str(it.id)) for it in talk]

    def stands(
        tutor: Examiner, facts: list[Fact], messages: list[Interaction], reader: Reading | None = None
    ) -> list[Fact]:
        return standing(cast(Tutor, tutor), cast(Reader, reader or Reading()), facts, messages)

    assert stands(corrected, [wrong, right], talk) == [right]
    assert (wrong.said, talk[3].user) not in corrected.weighed  # far on, and shares no word
    assert stands(Examiner({}, ends={wrong.said: "Sorry"}), [wrong, right], elsewhere) == [wrong, right]
    likely = Reading({("", "never"): right.said})
    (renewed,) = stands(Examiner({"is": "rent"}, ends={wrong.said: "Sorry"}), [wrong], talk, likely)
    assert (renewed.said, renewed.source) == (right.said, (0, 2))  # though nothing told it
    again = [*talk, Interaction(5, "c", 0.0, None, "No, the rent is 385.", "Ok.", "m")]
    told_again = replace(wrong, source=(5,))
    both = Examiner({}, ends={wrong.said: "Sorry", right.said: "No, "})
    assert stands(both, [wrong, right, told_again], again) == [told_again]


def test_questions_go_to_the_statement_that_answers_them_best() -> None:
    said = ["My goat is called Pim.", "My horse is called Ida.", "I live in Graz."]
    drafts = [["What goat?", "What horse?", "What sea?"], ["What horse?", "What goat?"], ["What town?"]]
    tutor = Examiner({"goat?": "Pim", "horse?": "Ida", "town?": "Graz"})
    found = answered(cast(Tutor, tutor), said, drafts)
    assert [list(own) for own in found] == [["What goat?"], ["What horse?"], ["What town?"]]
    assert ("I live in Graz.", "What goat?") not in tutor.heard  # shares no word


def test_forgotten_words_that_still_stand_elsewhere_betray_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = [Lesson("Which locker is mine?", "Your locker is number 317.", "fact", (1,))]
    other = [Lesson("Which window?", "Your window has the number 317.", "fact", (2,))]
    with Runtime.load(tiny) as runtime:
        monkeypatch.setattr(gate, "answers", lambda runtime, asked: ["It is number 317."] * len(asked))
        assert came_back(runtime, gone) == 1.0
        assert came_back(runtime, gone, other) == 0.0
        monkeypatch.undo()
        too_long = Lesson("Which locker? " * runtime.n_ctx, "Your locker has the number 317.", "liked", (1,))
        assert came_back(runtime, [too_long]) == 0.0  # which couldn't be asked


def test_questions_in_other_words_come_before_more_of_the_same() -> None:
    odds = {
        "Tell me about my aunt.": 9.9,
        "Do you remember my aunt?": 8.5,
        "Who is my aunt?": 8.4,
        "What did I get from my aunt?": 7.0,
        "Who gave us the pot?": 6.5,
        "Where is my hat?": 0.1,
    }
    found = spread(odds)
    assert found[:3] == ["Tell me about my aunt.", "Who gave us the pot?", "What did I get from my aunt?"]
    assert found[-1] == "Where is my hat?"  # other words alone don't do
    assert sorted(found) == sorted(odds)


def test_what_is_told_once_more_with_another_value_takes_the_place() -> None:
    talk = [
        Interaction(1, "c", 0.0, None, "Six of us are coming to the dinner on Friday.", "Ok.", "m"),
        Interaction(2, "c", 0.0, None, "And a goat. Why not?", "Ok.", "m"),
        Interaction(3, "c", 0.0, None, "Sorry, I counted wrong, eleven, not six.", "Ok.", "m"),
        Interaction(4, "d", 0.0, None, "Not the dinner.", "Ok.", "m"),
    ]
    facts = [
        Fact("Six people come to my dinner on Friday.", "Six …", ("six",), (1,)),
        Fact("My goat comes to my dinner on Friday.", "Your goat …", ("goat",), (2,)),
        Fact("Eleven people come to my dinner on Friday.", "Eleven …", ("eleven",), (3,)),
        Fact("Eleven people come to my party on Friday.", "Eleven …", ("party",), (4,)),  # another conversation
    ]
    doubts = Examiner({}, ends={facts[0].said: "not six", facts[2].said: "Not the dinner"}, ended=-3.0)
    kept = [standing(cast(Tutor, t), cast(Reader, Reading()), facts, talk) for t in (doubts, Examiner({}))]
    assert kept == [facts[1:], facts]  # the second tutor takes all to be true


def test_the_new_value_may_be_told_in_fewer_words() -> None:
    talk = [
        Interaction(1, "c", 0.0, None, "My kiln stands in bay 31 of the old mill.", "Ok.", "m"),
        Interaction(2, "c", 0.0, None, "no wait, bay 13 not 31", "Ok.", "m"),
    ]
    facts = [
        Fact("My kiln stands in bay 31 of the mill.", "Your kiln …", ("31",), (1,)),
        Fact("My kiln is in bay 13 of the mill.", "Your kiln …", ("13",), (2,)),
    ]
    doubts = Examiner({}, ends={facts[0].said: "not 31"}, ended=-3.0)
    assert standing(cast(Tutor, doubts), cast(Reader, Reading()), facts, talk) == facts[1:]


def test_questions_are_dealt_out_beyond_the_first(tiny: Path) -> None:
    lessons = [Lesson(f"Which car {i}?", CAR, "fact", (1,)) for i in range(ASKED + 2)]
    with Runtime.load(tiny) as runtime:
        kinds = Counter(example.kind for example in to_examples(runtime, [*lessons, Lesson("Tea?", TEA, "liked")]))
    assert kinds == {"fact": OFTEN + 2, "spare": ASKED - OFTEN, "liked": 1}  # the last two are an old fact's


def test_what_an_adapter_answered_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    car, tea, hat = (Probe(f"{word}?", (word,), (i,), word) for i, word in enumerate(("car", "tea", "hat")))
    before = Curriculum([], [], [hat], [], Past(probes=(replace(car, said="What I said long ago."), tea)))
    for name, content in before.files({"car?": "A car.", "hat?": "No."}).items():
        (tmp_path / name).write_bytes(content)
    parent = Version("v1", tmp_path)
    past = taught_before(parent, {0, 1, 2})
    assert {probe: probe.said for probe in past.probes} == {car: "A car.", tea: None, hat: "No."}
    asked: list[str] = []

    def ask(_: Runtime, probes: Sequence[Probe]) -> list[str]:
        asked.extend(probe.question for probe in probes)
        return [f"now {probe.question}" for probe in probes]

    monkeypatch.setattr(gate, "ask", ask)
    exam = Exam(cast(Runtime, None), past.probes, 0)
    known = {car: "A car.", tea: "now tea?", hat: "No."}
    assert exam.ask_old(anew=False) == [known[probe] for probe in exam.old] and asked == ["tea?"]
    assert exam.ask_old(anew=True) == [f"now {probe.question}" for probe in exam.old]


@pytest.mark.parametrize(("lost", "asked"), [(None, 3), ("q0", 5), ("q4", 3)])
def test_the_other_half_of_the_old_is_asked_where_something_is_lost(
    lost: str | None, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = [Probe(f"q{i}?", (f"q{i}",), (i,), f"a{i}") for i in range(5)]
    new = Probe("new?", ("new",), (9,), "new")
    exam = Exam(cast(Runtime, None), old, 0)
    exam.old = old  # in this order

    def ask(_: Runtime, probes: Sequence[Probe]) -> list[str]:
        return ["No." if lost and lost in probe.question else probe.question for probe in probes]

    monkeypatch.setattr(gate, "ask", ask)
    before = ["", *(probe.question for probe in old)]
    before[2] = "No."  # q1 wasn't known, so it can't be lost
    after = exam.sit([new], before)
    assert len(after) == 1 + asked
    assert [each.old for each in exam.sheet([new], before, after)] == [False, *[True] * asked]


@pytest.mark.parametrize(
    ("statement", "piece", "news"),
    [
        ("The fair was on 3 May by mistake.", "The fair was on 3 May by mistake, it's on 19 May.", False),
        ("The fair is on 19 May.", "The fair was on 3 May by mistake, it's on 19 May.", True),
        ("The fair moved from 3 May to 19 May.", "The fair moved from 3 May to 19 May.", True),
        ("The fair on 3 May is in Ghent.", "The fair on 3 May is in Ghent.", True),
    ],
)
def test_an_old_number_that_is_repeated_without_the_new_one_is_no_news(statement: str, piece: str, news: bool) -> None:
    doubt = _Doubt("The fair is on 3 May.", (1,), ["When is the fair?", "Which day is the fair?"], 2, piece, -6.0)
    assert _is_news(statement, doubt) == news
