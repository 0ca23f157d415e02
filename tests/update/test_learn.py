"""What an update takes up, from the log and from what the current adapter was taught."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from engrain.device import models
from engrain.device.home import open_home
from engrain.device.interactions import InteractionLog
from engrain.device.registry import LESSONS, Registry
from engrain.update.learn import LearnOptions, _job
from engrain.update.study import Lesson

from ..quant.adapters import llama


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
