"""What a message tells, one clause at a time: "By the way, my son is seven and my daughter is three." tells two things.

English grammar, as in `frames`: what leads in is left out, joined clauses come apart, and "he" or "its" at a clause's
beginning becomes what the clause before was about, so that each can be asked about and answered alone. Sentences
in other languages stay as they were said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from engrain.update import frames, wording

_LEAD = re.compile(
    r"^(?:(?:by the way|btw|actually|anyway|also|and|but|so|fyi|for your information|just so you know|you know"
    r"|for the record|on another note|fun fact|unrelated|one more thing"
    r"|(?:please )?(?:remember|note|know|keep in mind|don['’]t forget)(?: that)?(?=,? (?:I|we|my|our|the)\b)"
    r"|I (?:should|must|have to) (?:say|mention|add)(?: that)?)[,:]?"
    r"|(?:oh|well|yes|no|ok|okay|sure|hi|hello|hey|sorry|thanks|thank you|i see|right"
    r"|ugh|phew|wow|haha|great|perfect|nice|good to know)\b[^,.;:!?]{0,40}[,;:])\s+",
    re.IGNORECASE,
)
_TAIL = re.compile(
    r",\s*(?:please (?:remember|note|keep)[^,]*|(?:just )?so you know|by the way|you know|remember)$", re.IGNORECASE
)
_CALL_ME = re.compile(r"^(?:(?:please|just|you can)\s+)*call me\s+(.+)$", re.IGNORECASE)
_SUBJECT = r"(?:I|we|he|she|it|they|my|our|his|her|its|their|the)\b"
_JOINT = re.compile(rf"(?:;|,?\s(?:and|while|whereas)|,)\s+(?={_SUBJECT})", re.IGNORECASE)
_SHARED = re.compile(r",?\sand\s+(?:also\s+)?(?=([\w'’]+))", re.IGNORECASE)
_SUBORDINATE = frozenset("when if because since while although though before after as whenever until unless".split())
_FIRST = frozenset("i we".split())
_PRONOUNS = frozenset("i we you he she it they".split())
_PRONOUN = re.compile(r"^(he|she|it|they|his|her|its|their)\b(?:['’](s|re|ve|ll|d))?(?=\s)", re.IGNORECASE)
_LONG = {"s": " is", "re": " are", "ve": " have", "ll": " will", "d": " would"}
_NOTHING_MEANT = re.compile(
    r"^it(?:['’]s|\s+\w+)\s+(?:been\s+)?"
    r"(?:raining|snowing|cold|hot|warm|late|early|time|important|nice|hard|easy|good|bad|true|great)\b"
    r"|\bit (?:turns out|turned out|seems|looks like|takes|took)\b",
    re.IGNORECASE,
)
_TITLE = r"(?:(?:Mr|Mrs|Ms|Dr|Prof)\.? )?"
_CALLED = re.compile(
    rf"\b([Mm]y|[Oo]ur) ((?:[a-z-]+(?:['’]s)? ){{0,2}}[a-z-]+),? "
    rf"({_TITLE}[A-Z][\w'’-]*[\w](?: [A-Z][\w'’-]*[\w])*)(?!['’]|\w)"
)
_NO_BEARER = re.compile(rf" (?:{'|'.join(sorted(frames.PREPOSITION))}|called|named|\w+ing)$")  # "my mum's visiting"
_OWNS = re.compile(r"['’]s$")
_REASON = re.compile(rf"\b(?:because|since) (?={_SUBJECT})(.{{8,}})$", re.IGNORECASE)
_BEFORE = re.compile(rf"^([^:.!?]{{3,60}}):\s+(?={_SUBJECT})", re.IGNORECASE)  # "Notes for our trip: we leave …"
_PLURAL = re.compile(r"s$|(?:children|people|men|women|family|team|parents)\b|\band\b")
_HANGING = re.compile(r"\b(?:he|she|it|him|her|his|its)\b", re.IGNORECASE)
_NAMED = re.compile(r"\b(?i:my|our|an?|this|that)\s+\w|(?<!^)\b[A-Z]\w")
_NEW = re.compile(r"\b(?:bought|adopted|got|built|found|met|rent|keep)\s+an?\s+((?:[a-z-]+\s+)?[a-z-]+)")


def told(text: str, before: str = "") -> list[str]:
    """The statements of a message, each of which stands alone. before: the statement that came before it."""
    found: list[str] = []
    earlier = ""  # the last sentence that isn't a request or a greeting
    for sentence in wording.sentences(text):
        bare = without_question(without_frame(sentence))
        if wording.is_statement(bare):
            for clause in apart(bare):
                before = _sentence(resolve(clause, before), bare)
                found.append(f"{earlier} {before}" if earlier and _hangs(before) else before)
        else:
            found += in_request(sentence)
        if not wording.asks(sentence):
            earlier = sentence
        elif not found and _NAMED.search(sentence):
            # "Can you help with a card? It's for Ana.": "it" isn't what an earlier message was about.
            before = next((p for p in _phrases(sentence.rstrip("?")) if p.startswith(("my ", "our "))), "")
    return found


def in_request(sentence: str) -> list[str]:
    """What a request tells by the way: who someone is called, and why it is made.

    "Write to my landlady, Mrs. Osei, because the tap drips." -> "My landlady is called Mrs. Osei.", "The tap drips."
    """
    names = [f"{bearer} is called {name}." for bearer, name in names_in(sentence)]
    reason = _REASON.search(sentence.rstrip("?"))
    return names + ([_sentence(each, ".") for each in apart(reason[1].rstrip("."))] if reason else [])


def names_in(sentence: str) -> list[tuple[str, str]]:
    """Who or what is spoken of by name, and the name: "My nephew Tevita likes rice." -> ("My nephew", "Tevita")."""
    found = [(f"{m[1].capitalize()} {m[2]}", _OWNS.sub("", m[3])) for m in _CALLED.finditer(sentence)]
    return [(bearer, name) for bearer, name in found if not _NO_BEARER.search(bearer)]


def _hangs(clause: str) -> bool:
    """Whether it says "she" or "it" of something that it doesn't name."""
    match = _HANGING.search(clause)
    return bool(match and not _NOTHING_MEANT.search(clause) and not _NAMED.search(clause[: match.start()]))


def without_frame(sentence: str) -> str:
    """Without what leads in or follows after: "By the way, my cat is ill." -> "My cat is ill.\""""
    end = sentence[len(sentence.rstrip(".!")) :]
    body = sentence.rstrip(".!")
    while match := _LEAD.match(body):
        body = body[match.end() :]
    body = _TAIL.sub("", body)
    match = _CALL_ME.match(body)
    if match:
        body = f"I want to be called {match[1]}"
    return sentence if body == sentence.rstrip(".!") else body[:1].upper() + body[1:] + end


def without_question(sentence: str) -> str:
    """Without the question that it ends in: "My goat is ill, what should I do?" -> "My goat is ill.\""""
    head, comma, tail = sentence.rpartition(", ")
    asks = comma and sentence.endswith("?") and wording.asks(tail)
    return f"{head}." if asks and not _SUBORDINATE.intersection(wording.words(head)[:1]) else sentence


def apart(sentence: str) -> list[str]:
    """The clauses that "and" or a comma join, each with its subject, and with what stands before a colon."""
    if match := _BEFORE.match(sentence):
        parts = apart(sentence[match.end() :])
        if len(parts) > 1 and not _PRONOUN.match(parts[0]):
            return [part if _PRONOUN.match(part) else f"{match[0]}{part}" for part in parts]
    left, rest = sentence, list[str]()
    for match in reversed(list(_JOINT.finditer(sentence))):
        first, second = left[: match.start()], left[match.end() :]
        meant = not _PRONOUN.match(second) or resolve(second, first) != second
        if meant and _is_clause(first) and _is_clause(second):
            left, rest = first, [second, *rest]
    return [part for whole in (left, *rest) for part in _unshared(whole)]


def resolve(clause: str, before: str) -> str:
    """The clause with what its first pronoun means, as far as the statement before it tells."""
    match = _PRONOUN.match(clause)
    phrases = _phrases(before) if match and not _NOTHING_MEANT.match(clause) else []
    if not match or not phrases:
        return clause
    word = match[1].lower()
    if word in ("they", "their") and not _PLURAL.search(phrases[0]):
        return clause  # the office, the city, whoever it is
    phrase = phrases[-1] if word in ("it", "its") else phrases[0]
    owner = word in ("his", "its", "their") or (word == "her" and not match[2])
    return phrase + ("'s" if owner else _LONG.get(match[2] or "", "")) + clause[match.end() :]


def _phrases(statement: str) -> list[str]:
    plain = statement.rstrip(".!")
    return [*frames.noun_phrases(plain), *(f"my {match[1]}" for match in _NEW.finditer(plain))]


def _unshared(clause: str) -> list[str]:
    """ "I live in Graz and work at a mill" -> both, each with "I"; past or common verbs only, to be sure of them."""
    for match in _SHARED.finditer(clause):
        left, verb = clause[: match.start()], match[1].lower()
        subject = _subject(left)
        if subject and _is_verb(verb, subject.lower() in ("i", "we", "they")) and match.end() + len(verb) < len(clause):
            return [left, *_unshared(f"{subject} {clause[match.end() :]}")]
    return [clause]


def _is_verb(word: str, plural: bool) -> bool:
    past = word in frames.PAST or (word.endswith("ed") and len(word) > 4)
    return past or word in frames.HELPERS or word in (frames.COMMON if plural else frames.THIRD_PERSON)


def _subject(clause: str) -> str:
    """The words before a clause's first verb; empty if that can't be told, or it begins another way."""
    found = clause.split()
    first = re.split(r"['’]", found[0])[0] if found else ""
    if first.lower() in _PRONOUNS:
        return first
    for i, word in enumerate(found[1:5], 1):
        if _is_verb(word.lower(), plural=False):
            return " ".join(found[:i]) if re.match(_SUBJECT, clause, re.IGNORECASE) or found[0].istitle() else ""
    return ""


def _is_clause(text: str) -> bool:
    words = wording.words(text)
    least = 2 if words and words[0] in _FIRST else 3  # "she insists" is no clause of its own
    long_enough = len(words) + sum("'" in word for word in words) >= least
    return long_enough and words[0] not in _SUBORDINATE and bool(_subject(text))


def _sentence(clause: str, whole: str) -> str:
    """With a capital, and ended as the whole was."""
    end = whole[len(whole.rstrip(".!…")) :]
    body = clause.strip().rstrip(",;")
    return body[:1].upper() + body[1:] + ("" if body.endswith((".", "!", "…")) else end)


def told_in(messages: Iterable[tuple[str, str]]) -> list[list[str]]:
    """`told` for each of (conversation, message) in order; a pronoun may mean what an earlier message told."""
    last: dict[str, str] = {}
    found = []
    for conversation, text in messages:
        found.append(told(text, last.get(conversation, "")))
        if found[-1]:
            last[conversation] = wording.sentences(found[-1][-1])[-1]
    return found
