"""What an update takes up, from the log and from what the current adapter was taught."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from engrain.device import models
from engrain.device.home import open_home
from engrain.device.interactions import InteractionLog
from engrain.device.registry import LESSONS, Registry
from engrain.update.curriculum import Curriculum, Past
from engrain.update.learn import LearnOptions, _Job, _job, _teaches
from engrain.update.study import Lesson

from ..quant.adapters import llama


def test_what_was_replaced_and_then_forgotten_leaves_the_weights(tiny: Path) -> None:
    home, model = open_home(), models.ModelFile("tiny", tiny, "path")
    sha, registry = models.sha256(home, tiny), Registry(home)
    with InteractionLog(home.interactions) as log:
        rome, paris, asked = (log.record("c", f"Message {i}.", "Ok.", model=sha) for i in range(3))
        lesson = Lesson("Where do I live?", "You live in Paris \u2028 now.", "fact", (paris,))
        seen = {"engrain.base_sha256": sha, "engrain.base_name": "tiny", "engrain.interactions": f"[{rome}, {paris}]"}
        rows = json.dumps(asdict(lesson), ensure_ascii=False).encode()
        version = registry.add(llama(metadata=seen), "", {LESSONS: rows})
        registry.use(version.name)
        log.mark_learned([rome, paris, asked], version.name, sha)

        def job() -> _Job:
            return _job(home, model, LearnOptions(), lambda progress: None, log)

        assert not job().past.anew and job().past.lessons == (lesson,)
        log.forget(asked)  # that taught nothing
        assert not job().past.anew
        log.forget(rome)
        assert job().past.anew and job().warm is None and job().past.lessons == (lesson,)
        assert [it.id for it in job().taught] == [paris]


def test_what_is_worth_a_new_version(tiny: Path) -> None:
    home, model = open_home(), models.ModelFile("tiny", tiny, "path")
    with InteractionLog(home.interactions) as log:
        id = log.record("c", "Sold the boat.", "Ok.", model=models.sha256(home, tiny))
        job = _job(home, model, LearnOptions(), lambda progress: None, log)
    old, new = (Lesson("Where?", f"In {i}.", "fact", (i,)) for i in (id + 1, id))
    contrast = Lesson("Who?", "You haven't told me that yet.", "contrast")

    def teaches(lessons: list[Lesson], replaced: frozenset[str] = frozenset(), anew: bool = False) -> bool:
        curriculum = Curriculum([], lessons, [], [], Past(), replaced)
        return _teaches(replace(job, past=Past(anew=anew)), curriculum)

    assert not teaches([replace(old, kind="replay"), contrast])  # a question alone, say
    assert teaches([old, new, contrast])
    assert teaches([old, contrast], frozenset({"You have a boat."}))  # which ended, and nothing came of it
    assert teaches([old], anew=True)
    assert not teaches([contrast], frozenset({"You have a boat."}))


def test_what_came_of_a_forgotten_message_and_another_is_learned_anew(tiny: Path) -> None:
    home, model = open_home(), models.ModelFile("tiny", tiny, "path")
    sha, registry = models.sha256(home, tiny), Registry(home)
    with InteractionLog(home.interactions) as log:
        old, new, other = (log.record("c", f"Message {i}.", "Ok.", model=sha) for i in range(3))
        sources = {"Your locker at work is number 204.": (old, new), "You live in Graz.": (other,)}
        rows = [json.dumps(asdict(Lesson("What?", answer, "fact", ids))) for answer, ids in sources.items()]
        adapter = llama(metadata={"engrain.base_sha256": sha, "engrain.base_name": "tiny"})
        version = registry.add(adapter, "", {LESSONS: "\n".join(rows).encode()})
        registry.use(version.name)
        log.mark_learned([old, new, other], version.name, sha)

        def fresh() -> list[int]:
            job = _job(home, model, LearnOptions(), lambda progress: None, log)
            assert [lesson.source for lesson in job.past.gone] == ([] if not job.fresh else [(old, new)])
            return [it.id for it in job.fresh]

        assert fresh() == []
        log.forget(old)
        assert fresh() == [new]
