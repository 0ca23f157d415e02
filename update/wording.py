"""Words, not models: sentences of a message, turning "I" to "you", which words carry the content.

Closed-class lists (pronouns, question words) are facts of a language, not of a data set. A language that isn't
listed goes through the same path with the user's own words kept verbatim.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from engrain.device.scope import QUESTION_MARKS

_SENTENCE = re.compile(r"(?<=[.!?。！？])[\"'”’)]*\s+|(?<=[。！？])(?=\w)|\n+")
_ABBREVIATION = re.compile(r"\b(?:[A-Z]|Dr|Mr|Mrs|Ms|Prof|St|No|Nr|vs|etc|e\.g|i\.e|z\.B)\.$")
# Where no spaces part words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), each character is one.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:[-'’.@][^\W_{_UNSPACED}]+)*", re.UNICODE)

_TURN = {
    "i": "you", "me": "you", "my": "your", "mine": "yours", "myself": "yourself",
    "we": "you", "us": "you", "our": "your", "ours": "yours", "ourselves": "yourselves",
    "im": "you're", "ive": "you've", "i'm": "you're", "i've": "you've", "i'd": "you'd", "i'll": "you'll",
    "we're": "you're", "we've": "you've", "we'd": "you'd", "we'll": "you'll",
    "am": "are",
}  # fmt: skip
_BACK = {
    "you": "I", "your": "my", "yours": "mine", "yourself": "myself",
    "you're": "I'm", "you've": "I've", "you'd": "I'd", "you'll": "I'll",
}  # fmt: skip
_AFTER_I = {"was": "were", "wasn't": "weren't"}
_OF_I = (("I are", "I am"), ("are I", "am I"), ("I were", "I was"), ("were I", "was I"), ("I weren't", "I wasn't"))
_BEFORE_ME = frozenset(
    "about against around at between by behind for from in into near of on over than to under with without".split()
)
_AFTER_ME = frozenset("a an any her his its no our some that the their this to your".split())
_BEFORE_I = frozenset("am are can could did do does had have may might must shall should was were will would".split())

_FUNCTION = frozenset(
    "a an the and or but so of to in on at by for from with without about into over under than then that this "
    "these those it its he she they them his her their who whom whose what which where when why how is am are "
    "was were be been being do does did have has had can could will would shall should may might must not no yes "
    "i me my mine we us our you your yours there here as if because while also just very really too only always "
    "never often now today name called remember tell know please i'm i've i'd i'll we're we've it's don't can't "
    "didn't isn't haven't".split()
)
# Of Chinese and Japanese.
_UNSPACED_FUNCTION = frozenset(
    "我你您他她它们的了是在有和不吗呢吧啊这那个什么谁哪几怎为就都也很要会能可以去来"
    "私はがをにでとのもかよねへやするいますたてだっ"
)
# Of German, Dutch, French, Spanish, Italian and Portuguese, and not English words.
_OTHER = (
    frozenset(
        "ich mir mich uns kann kommt vom nur auch jetzt das mein meine meinen meinem meiner wir unser unsere unseren "
        "der dem des ein eine einen einem einer ist und nicht wird sind hat habe mit für auf von zu zum zur bei "
        "um seit sie er es ik mijn onze ons wij een het de en voor naar je mon ma mes notre nos nous est et "
        "le la les un une du au aux avec pour sur dans qui que yo mi mis nuestro nuestra el los las una y con para "
        "por del al su sus se io mio mia miei mie nostro nostra il lo gli di si e è sono ha voy che da nel nella "
        "della eu meu minha meus minhas nosso nossa os uma com do no na em ao".split()
    )
    - _FUNCTION
)
_ENGLISH = _FUNCTION - frozenset("i me mine us am im".split())  # which are words in one of those, too
_FIRST_PERSON = frozenset("i me my mine we us our ours im ive i'm i've i'd i'll we're we've".split())
_REQUEST = frozenset(
    "write tell give show explain describe list make create summarize summarise translate help please can could "
    "would will let suggest recommend compare define find calculate solve generate draft rewrite fix answer "
    "continue imagine what who whom whose where when why how which do does did is are am was were should may "
    "whats whos wheres hows shall has have hi hello hey thanks thank ok okay bye yes no sure great good".split()
)

STEM = 5  # letters by which words are taken to be the same one


def sentences(text: str) -> list[str]:
    """The sentences of a message, in order."""
    found: list[str] = []
    for part in _SENTENCE.split(text.strip()):
        part = part.strip()
        if found and _ABBREVIATION.search(found[-1]):
            found[-1] += " " + part
        elif part:
            found.append(part)
    return found


def whole_sentences(text: str) -> str:
    """Without what is broken off at the end, if a sentence or line ends before it."""
    ends = [m.end() for m in re.finditer(r"[.!?。！？…][\"'”’)]*(?=\s|$)|\n", text.rstrip())]
    return text[: ends[-1]].strip() if ends else text.strip()


def word_spans(text: str) -> Iterator[re.Match[str]]:
    """Where its words stand."""
    return _WORD.finditer(text)


def words(text: str) -> list[str]:
    """Lower-case words; a hyphenated one is one word."""
    return [w.lower().replace("’", "'") for w in _WORD.findall(text)]


def content_words(text: str) -> list[str]:
    """The words that say what a text is about, in order."""
    return [w for w in words(text) if w not in _FUNCTION and w not in _UNSPACED_FUNCTION]


def stem(word: str) -> str:
    """What it begins with; a number whole."""
    return word if has_digit(word) else word[:STEM]


def stems(text: str) -> set[str]:
    """Those of content words: enough to tell that two texts may share one."""
    return set(map(stem, content_words(text)))


def has_digit(text: str) -> bool:
    return any(map(str.isdigit, text))


def is_statement(sentence: str) -> bool:
    """Whether a sentence tells something: no question, no request, no greeting."""
    found = words(sentence)
    if len(found) + sum("'" in w for w in found) < 3 or sentence.rstrip("\"'”’) ").endswith(QUESTION_MARKS):
        return False
    personal = any(w in _FIRST_PERSON for w in found)
    first = found[0].split("'")[0] if found[0].endswith("'s") else found[0]  # "What's a quick breakfast"
    greets = found[0] in ("yes", "no", "ok", "okay", "hi", "hello", "hey")
    sets_out = found[0] in ("when", "where") and "," in sentence  # "When I was ten, we moved to Chile."
    return first not in _REQUEST or (personal and (greets or sets_out))


def asks(sentence: str) -> bool:
    """Whether a sentence begins as requests and greetings do."""
    return not (found := words(sentence)) or found[0].split("'")[0] in _REQUEST


def to_second_person(sentence: str) -> str:
    """What the user says of themself as the assistant says it: "My cat sleeps." -> "Your cat sleeps."

    As it is in another language, where "am", "im", "me" and "i" are something else.
    """
    own = _WORD.findall(sentence)
    other = sum(word in _OTHER for word in (own[0].lower(), *own[1:])) if own else 0  # names have capitals
    if other > sum(word in _ENGLISH for word in words(sentence)):
        return sentence
    return _swap(sentence, _TURN, first_person=True)


def to_first_person(question: str) -> str:
    """What is said to the user, or asked of the assistant, as the user's own: "your cat" -> "my cat"."""
    found = _swap(question, _BACK)
    for other, own in _OF_I:
        found = re.sub(rf"\b{other}\b", own, found)
        found = re.sub(rf"\b{other[0].upper()}{other[1:]}\b", own[0].upper() + own[1:], found)
    return found


def has_first_person(text: str) -> bool:
    return any(w in _FIRST_PERSON for w in words(text))


def _is_object(previous: str, rest: str) -> bool:
    """Whether "you" is one, after a word and before the rest of a text: "for you", "gave you a clock", "tells you."."""
    following = next((m[0].lower() for m in _WORD.finditer(rest)), "")
    closes = not rest.strip() or rest[0] in ".,;:!?)"
    return previous in _BEFORE_ME or ((closes or following in _AFTER_ME) and previous not in ("", *_BEFORE_I))


def _swap(text: str, table: dict[str, str], first_person: bool = False) -> str:
    out, end, previous = [], 0, ""
    for match in _WORD.finditer(text):
        word = match[0]
        key = word.lower().replace("’", "'")
        new = table.get(key, word)
        if new == "I" and _is_object(previous, text[match.end() :]):
            new = "me"
        if first_person and previous in ("i", "we") and key in _AFTER_I:
            new = _AFTER_I[key]
        starts = not text[: match.start()].strip(" \"'“‘(") or text[: match.start()].rstrip()[-1:] in ".!?"
        if new != word and (starts and word[:1].isupper()):
            new = new[:1].upper() + new[1:]
        out.append(text[end : match.start()] + new)
        end, previous = match.end(), key
    return "".join(out) + text[end:]
