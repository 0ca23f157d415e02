"""Questions made from the user's own sentence by English grammar: help for a teacher that is too small to trust.

A small model writes few good questions, so each statement is also turned into the plain ones: what, who, where
about its subject, its possessives and its verb. They need not all make sense: each is answered by what the
user said, and together they teach which words belong to it. Statements in other languages get none.
"""

from __future__ import annotations

import re

from engrain.update import wording

_NO_SUBJECT = frozenset(
    "i we it this that there he she they i'm i've i'd i'll we're we've we'd we'll it's he's she's they're".split()
)
_BE = r"(?:is|are|was|were)"
_SUBJECT = re.compile(rf"^(.{{2,60}}?)\s+{_BE}\s+(.+)$", re.IGNORECASE)
_POSSESSIVE = re.compile(r"\b(my|our)\s+([\w'’-]+(?:\s+[\w'’-]+){0,2})", re.IGNORECASE)
_HAVE = re.compile(
    r"^(?:I|We)(?:\s+(?:have|own|keep|got)|'ve(?: got)?)\s+(an?|two|three|four|some)\s+(.+)$", re.IGNORECASE
)
_AM = re.compile(r"^(?:I\s+am|I'm|I’m|We\s+are|We're|We’re)\s+(.+)$", re.IGNORECASE)
_VERB = re.compile(
    r"^(I|We)\s+(?:(?:really|always|usually|often|never|also|just|only|now|still|sometimes|mostly)\s+)?"
    r"(can't|cannot|can|don't|won't|will|would|(?:like|love|want|have|need|plan|hope) to(?: be)?|[a-z]+)\s+(.+)$",
    re.IGNORECASE,
)
PREPOSITION = frozenset("in on at by for from with to of about under over near behind inside into as than".split())
_MODAL = frozenset("can can't cannot will won't would".split())
_IRREGULAR = {"am", "was", "were", "had", "have", "has", "did", "do"}
HELPERS = frozenset(
    "is are was were has have had can can't cannot could will won't would might may shall does doesn't do don't "
    "did didn't must should isn't aren't wasn't weren't hasn't haven't".split()
)
COMMON = frozenset(
    "live work play love like hate drive want need speak own teach collect run come eat drink sleep read write travel "
    "cook sing paint keep prefer use wear ride grow sell make take give help visit start end cost stand hang lie open "
    "close feed".split()
)  # verbs
THIRD_PERSON = frozenset({f"{verb}s" for verb in COMMON} | {"studies", "goes", "teaches", "does"})
_PARTICLE = frozenset("up out off down away back together around along".split())
PAST = {
    "left": "leave", "went": "go", "gave": "give", "bought": "buy", "sold": "sell", "grew": "grow", "took": "take",
    "met": "meet", "got": "get", "found": "find", "lost": "lose", "put": "put", "made": "make", "wrote": "write",
    "taught": "teach", "kept": "keep", "began": "begin", "broke": "break", "saw": "see", "told": "tell", "ran": "run",
    "built": "build", "spent": "spend", "won": "win", "chose": "choose", "hid": "hide", "felt": "feel",
    "spoke": "speak", "sent": "send", "read": "read", "paid": "pay", "drove": "drive", "rode": "ride", "flew": "fly",
    "swam": "swim", "sang": "sing", "drew": "draw", "caught": "catch", "thought": "think", "became": "become",
    "came": "come", "fell": "fall", "held": "hold", "led": "lead", "lent": "lend", "said": "say", "wore": "wear",
}  # fmt: skip
# "My aunt Ruth paints houses.": a noun of the user's, perhaps a name, a verb, the rest.
_OTHERS = re.compile(
    r"^((?:my|our|the)\s+[a-z'’ -]+?)((?:\s+[A-Z][\w'’-]*\.?)*)\s+"
    r"([a-z]{2,}(?:s|ed)|(?<=s\s)[a-z]{3,}|" + "|".join(sorted(PAST)) + r")\s+(.+)$"
)
# "My boss, Mrs. Osei, wants it today.": a name between commas.
_APPOSITIVE = re.compile(r"^((?:[Mm]y|[Oo]ur|[Tt]he)\s+[a-z'’ -]+),\s+(?:the\s+)?([A-Z][^,]{1,40}),\s+")
_HAVE_BEEN = re.compile(r"^(I|We)(?:['’]ve|\s+have)\s+been\s+(?=\w+ing\b)")
# What goes on after the first clause says when or why.
_GOES_ON = re.compile(r",\s|\s(?:because|since|when|whenever|while|although|if|so that)\s", re.IGNORECASE)
_NUMBER = re.compile(
    r"\b(?:\d[\d.,]*|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty)\b"
)
_NAME_WORDS = re.compile(r"\b(?:named|called|is called|name is)\b", re.IGNORECASE)


def questions(statement: str) -> list[str]:
    """Plain questions that the statement answers, most natural first; none for a sentence that isn't English."""
    plain = _APPOSITIVE.sub(r"\1 \2 ", statement.strip().rstrip(".! "))
    plain = _HAVE_BEEN.sub(lambda m: "I'm " if m[1] == "I" else "We're ", plain)
    found: list[str] = []
    for phrase in noun_phrases(plain):
        named = _NAME_WORDS.search(plain) or re.search(rf"\b(?i:{re.escape(phrase)})\s[A-Z]", plain)
        found += _about(phrase, bool(named))
    found += _identity(plain) + _action(plain) + _others(plain) + _predicate(plain) + _inverse(plain)
    found += [_singular(q) for q in found]
    if found:
        found += [f"What did I tell you about {w}?" for w in wording.content_words(plain)[:3]]
    found = [q[:1].upper() + q[1:] for q in found]
    return list(dict.fromkeys(found))


def noun_phrases(plain: str) -> list[str]:
    """What the sentence is about, in the user's words: its subject, "my …", and what "I have"."""
    phrases: list[str] = []
    match = _subject(plain)
    if match and len(wording.words(match[1])) <= 7:
        phrases.append(_without_name(_lower_first(re.sub(r"(?:['’]s)? name$", "", match[1]))))
    for match in _POSSESSIVE.finditer(plain):
        kept = _noun(match[2].split())
        if kept:
            phrases.append(f"{match[1].lower()} {kept}")
    match = _HAVE.match(plain)
    if match:
        kept = _noun(match[2].split())
        if kept:
            phrases.append(("our " if plain.lower().startswith("we") else "my ") + kept)
    return list(dict.fromkeys(p for p in phrases if p))


def _subject(plain: str) -> re.Match[str] | None:
    """(subject, rest) of a sentence that says what something is; None where a pronoun is its subject."""
    match = _SUBJECT.match(plain)
    found = wording.words(match[1]) if match else []
    return match if found and found[0] not in _NO_SUBJECT else None


def _noun(following: list[str]) -> str:
    """The words of a noun phrase: up to a name, a preposition, a verb's helper; else the first alone."""
    kept: list[str] = []
    for word in following:
        low = word.lower().rstrip(",;")
        if low in PREPOSITION or low in ("named", "called", "and", "but", "who", "that", "because", "name"):
            break
        if low in HELPERS or low == "used" or re.fullmatch(_BE, low):
            break
        if kept and (word[:1].isupper() or low in PAST):
            break
        kept.append(word.rstrip(",;"))
        if word[-1] in ",;":
            break
    else:
        if len(kept) == 3:  # cut off, perhaps inside a verb
            kept = kept[:2]
    if len(kept) == 2 and (kept[1] in THIRD_PERSON or (kept[1].endswith("ed") and len(kept[1]) > 4)):
        kept = kept[:1]
    return re.sub(r"['’]s$", "", " ".join(kept))


def _without_name(phrase: str) -> str:
    """ "my daughter Ida" -> "my daughter"; what isn't the user's keeps all of its words."""
    return re.sub(r"^((?:my|our)\s+[a-z][a-z'’ -]*?)(?:\s+(?:the\s+)?[A-Z][\w'’-]*\.?)+$", r"\1", phrase)


def _is_plural(noun: str) -> bool:
    return noun.endswith("s") and not noun.endswith("ss")


def _about(phrase: str, named: bool) -> list[str]:
    noun = re.sub(r"^(?:my|our|the)\s+", "", phrase)
    be = "are" if _is_plural(noun) else "is"
    found = [
        f"What {be} {phrase}?",
        f"Which {noun} is it?" if not phrase.startswith(("my", "our")) else f"Which {noun} do I have?",
    ]
    if named:
        found = [
            *found, f"What is the name of {phrase}?", f"What is {phrase}'s name?", f"What {be} {phrase} called?",
            f"Do you remember the name of {phrase}?", f"What do I call {phrase}?",
        ]  # fmt: skip
    return [
        *found, f"Who {be} {phrase}?", f"Where {be} {phrase}?", f"Tell me about {phrase}.",
        f"What do you know about {phrase}?", f"When {be} {phrase}?", f"What about {phrase}?",
        f"Do you remember {phrase}?", f"What's {phrase}?",
    ]  # fmt: skip


def _identity(plain: str) -> list[str]:
    match = _AM.match(plain)
    if not match:
        return []
    rest = match[1].split()
    am = "are we" if plain.lower().startswith("we") else "am I"
    if rest[0].lower().endswith("ing"):
        verb = rest[0]
        tail = " " + rest[1] if len(rest) > 1 and rest[1] in PREPOSITION else ""
        noun = verb.lower()
        return [f"What {am} {verb}{tail}?", f"What {am} {verb}{tail} at the moment?", f"Which one {am} {verb}{tail}?",
                f"What do I tell people I'm {noun}{tail}?", f"Where {am} {verb}?", f"When {am} {verb}?",
                f"{am[:1].upper() + am[1:]} {verb} something?",
                f"What {am} doing?", *_closing(am, rest)]  # fmt: skip
    if rest[0].lower() in ("a", "an"):
        return [f"What {am}?", "What is my job?", "What do I do for a living?", "What is my profession?", "Who am I?",
                "What kind of work do I do?", "How do I earn my money?", "What do I work as?"]  # fmt: skip
    stop = next((i for i, w in enumerate(rest) if w.lower() in PREPOSITION), None)
    if stop:
        head = " ".join(rest[: stop + 1])
        return [f"What {am} {head}?", f"Who {am} {head}?", f"Where {am} {' '.join(rest[:stop])}?", "What am I like?",
                f"Tell me what I'm {head}."]  # fmt: skip
    return [*_measure(am, rest), f"What {am}?", f"{am[:1].upper() + am[1:]} {' '.join(rest[:3]).rstrip(',')}?",
            "What should you know about me?",
            f"Do you remember what {am[-1] if am == 'am I' else 'we'} {'am' if am == 'am I' else 'are'}?"]  # fmt: skip


def _closing(am: str, rest: list[str]) -> list[str]:
    """ "are we", "getting married on Sunday" -> "When are we getting married?" and the like."""
    stop = next((i for i, w in enumerate(rest) if w.lower() in PREPOSITION), None)
    if stop is None or stop < 2:
        return []
    act = " ".join(rest[:stop])
    return [f"{ask} {am} {act}?" for ask in ("When", "Where")] + [f"Who {am} {act} {rest[stop]}?"]


def _measure(be: str, rest: list[str]) -> list[str]:
    """ "am I", "180 centimetres tall" -> "How tall am I?"; "is my son", "seven" -> "How old is my son?"."""
    if not _NUMBER.fullmatch(rest[0].lower()) or len(rest) > 3:
        return []
    if len(rest) == 3:
        return [f"How {rest[2]} {be}?"]
    return [f"How old {be}?"] if len(rest[0]) != 4 else []  # not a code, nor a year


def _predicate(plain: str) -> list[str]:
    """What someone or something is like: "My aunt is afraid of dogs" -> "What is my aunt afraid of?"."""
    match = _subject(plain)
    if not match or not re.match(r"(?:my|our|the)\b", match[1], re.IGNORECASE):
        return []
    be = plain[len(match[1]) :].split()[0]
    subject, rest = _without_name(_lower_first(match[1])), _GOES_ON.split(match[2])[0].split()
    if not rest or rest[0].lower() in ("called", "named"):
        return []
    stop = next((i for i, w in enumerate(rest) if w.lower() in PREPOSITION), None)
    if not stop:
        return [*_measure(f"{be} {subject}", rest), f"Where {be} {subject}?", f"When {be} {subject}?"]
    head, preposition = " ".join(rest[:stop]), rest[stop]
    return [f"What {be} {subject} {head} {preposition}?",
            *(f"{ask} {be} {subject} {head}?" for ask in ("Where", "When")),
            f"Who {be} {' '.join(rest)}?", f"Who {be} {head}?", f"What {be} {subject} like?"]  # fmt: skip


def _action(plain: str) -> list[str]:
    match = _VERB.match(plain)
    if not match or match[2].lower() in _IRREGULAR:
        return []
    who, verb, rest = match[1].replace("We", "we"), match[2].lower(), _GOES_ON.split(match[3])[0]
    if " to" in verb:
        act, _, rest = rest.partition(" ")
        act, aux = f"{verb} {act}", "do"
    elif verb in _MODAL:
        act, _, rest = rest.partition(" ")
        aux = verb
    elif verb == "don't":
        act, _, rest = rest.partition(" ")
        aux = "don't"
    elif verb.endswith("ed") or verb in PAST:
        act, aux = PAST.get(verb, _base(verb)), "did"
    else:
        act, aux = verb, "do"
    words = rest.split()
    if words and words[0] in _PARTICLE:
        act, words = f"{act} {words[0]}", words[1:]
    stop = next((i for i, w in enumerate(words) if w.lower() in PREPOSITION), len(words))
    tail, thing = " ".join(words[stop:]), " ".join(words[:stop])
    found = [
        f"What {aux} {who} {act}?",
        f"Where {aux} {who} {act}?",
        f"Which {'one ' if not thing else ''}{aux} {who} {act}?",
    ]
    if thing[:1].isupper() or re.search(r"\b(?:my|our)\b", thing):
        found += [f"Who {aux} {who} {act}?"]
    if _NUMBER.search(rest.lower()):
        found += [f"How {much} {aux} {who} {act}?" for much in ("much", "many", "long")]
    if tail:
        found += [f"When {aux} {who} {act}?"]
    if tail and thing:
        found += [f"What {aux} {who} {act} {tail}?", f"Where {aux} {who} {act} {thing}?",
                  f"Who {aux} {who} {act} {thing} {words[stop]}?",
                  f"How {aux} {who} {act} {thing}?", f"Where is {thing}?"]  # fmt: skip
        found += [f"Where are {thing}?", f"What did I tell you about {thing}?", f"Who has {thing}?"]
    elif tail:
        found += [
            f"What {aux} {who} {act} {words[stop]}?",
            f"How {aux} {who} {act}?",
            f"Who {aux} {who} {act} {words[stop]}?",
        ]
    else:
        found += [
            f"Do you remember what {who} {act}?",
            f"When {aux} {who} {act}?",
            f"What kind of thing {aux} {who} {act}?",
        ]
    return found


def _others(plain: str) -> list[str]:
    """What someone or something of the user's does."""
    match = _OTHERS.match(_lower_first(plain))
    if not match or HELPERS & {match[3], *match[1].split()} or not _GOES_ON.split(match[4])[0].strip():
        return []
    noun, verb, rest = match[1], match[3], _GOES_ON.split(match[4])[0]
    if verb in PAST or (verb.endswith("ed") and not verb.endswith("eed")):
        aux, act = "did", PAST.get(verb, _base(verb))
    elif _is_plural(noun):
        aux, act = "do", verb
    else:
        aux, act = "does", re.sub(r"(?<=[sxzoh])es$|s$", "", re.sub(r"ies$", "ys", verb))
    first = rest.split()[0]
    found = [f"Who {verb} {rest}?", f"What {verb} {rest}?", f"What {aux} {noun} do?"]
    if first in PREPOSITION:
        return [f"Where {aux} {noun} {act}?", f"What {aux} {noun} {act} {first}?", *found]
    return [f"What {aux} {noun} {act}?", f"Who {aux} {noun} {act}?", f"When {aux} {noun} {act}?", *found]


def _inverse(plain: str) -> list[str]:
    """The same sentence asked from its other end: "My goat is called Pim" -> "Who is Pim?"."""
    match = _subject(plain)
    if not match:
        return []
    end = re.sub(r"^(?:called|named)\s+", "", match[2])
    be = re.search(_BE, plain[len(match[1]) :])
    if not be or len(end.split()) > 6:
        return []
    return [f"Who {be[0]} {end}?", f"What {be[0]} {end}?"]


def _singular(question: str) -> str:
    """A question about "us" as it is asked by one of them."""
    table = {"we": "I", "our": "my", "us": "me", "are we": "am I", "we're": "I'm"}
    return re.sub(r"\b(are we|we're|we|our|us)\b", lambda m: table[m[1].lower()], question, flags=re.IGNORECASE)


def _base(past: str) -> str:
    """ "parked" -> "park", "moved" -> "move", "stopped" -> "stop", "studied" -> "study"; good enough to be asked."""
    stem = past[:-2]
    if stem.endswith("i"):
        return stem[:-1] + "y"
    if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "sl":
        return stem[:-1]
    return stem + "e" if re.search(r"(?:[^aeiou][aeiou][vszc]|[aeiou]v|us|at|ag|iz|is|rs|nc|as)$", stem) else stem


def _lower_first(text: str) -> str:
    first = text.split(" ", 1)[0]
    return text[:1].lower() + text[1:] if first.lower() in ("my", "our", "the", "a", "an") else text
