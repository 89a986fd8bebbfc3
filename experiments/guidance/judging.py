"""Language models that judge two answers in both orders, one question for each objective."""

import functools
import pathlib
from collections.abc import Sequence

import ml_collections

from alignment.decoding import cache
from alignment.errors import InputError
from alignment.safety.judging import Judge
from experiments.decoding import models
from experiments.guidance import scoring
from experiments.safety import judges

TEMPLATE = "compare_helpfulness"


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse a judge that cannot be, and settings of one that is not asked."""
    kinds = tuple({c.judge} & set(scoring.ASKED))
    if c.judge_templates and not kinds:
        raise InputError(f"judge_templates={c.judge_templates} are not read with judge={c.judge}; leave them out")
    for template in c.judge_templates or (c.judging.template,):
        group = dict(c.judging) | {"template": template}
        judges.check("judging", kinds, group, field="comparison", template=TEMPLATE)
    if c.judge == judges.MODEL and not c.judging.init_from:
        raise InputError(
            "judge=model needs judging.init_from, hf:<folder or hub id> or run:<workdir>: what is measured must not "
            "come from a model that guided"
        )


def judges_of(
    c: ml_collections.ConfigDict, names: Sequence[str], folder: pathlib.Path, verdicts: cache.Cache
) -> list[Judge]:
    """A judge for each objective; a model stands on one engine for all of them.

    Args:
        names: of the objectives.
        verdicts: what judges said, by content and judge.
    """
    templates = tuple(c.judge_templates) or (c.judging.template,) * len(names)
    if len(templates) != len(names):
        raise InputError(f"judge_templates={templates} and the objectives are {', '.join(names)}; give one for each")
    own = ml_collections.ConfigDict(models.settings())
    own.dtype, measured = c.compute.dtype, None
    if c.judge == judges.MODEL:
        own.init_from = c.judging.init_from
        model = models.load(own, folder)
        measured = judges.Measured(model, functools.cache(lambda: models.engine(model, own)))
    groups = [dict(c.judging) | {"template": template, "init_from": ""} for template in templates]
    return [judges.build(c.judge, group, own, folder, measured, verdicts) for group in groups]
