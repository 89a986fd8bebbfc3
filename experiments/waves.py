"""WAVES: image watermarks under attacks, compared at equal image quality.

Paper:   An et al. 2024, arXiv:2401.08573
Run:     python -m experiments.run --config experiments/waves.py --config.images='photos/*.png' --workdir runs/waves
Laptop:  python -m experiments.run --config experiments/waves.py:laptop     (CPU, minutes; `tiny`: seconds)
Many:    the same with --config.executor=process, or ray: cells do not depend on each other
Expect:  laptop, 16 made-up pictures, detected at the middle strength, mean over 14 attacks: encoder_decoder 0.83,
         spread 0.64, dct 0.45, dwt_dct_svd 0.31. A blur of 12 pixels defeats all of them (1 of 16 at most is detected),
         rotations and crops all but the trained mark, which is detected on 16 of 16 pictures (27 degrees, or 70 % of
         the area)

A mark's pictures go through each attack at several strengths. P is the share detected at 0.1 % false positives, Q the
normalised loss of quality; attacks are ranked by the Q at which P falls. The paper's own marks need a user's weights
(`given`), its attacks by networks are listed as not run, and nothing stands in for them under their names.
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from alignment import files
from alignment.errors import InputError, one_of
from alignment.watermark import distortions, marks, protocol, quality
from data import loader
from data.corpus import executors
from experiments.image_watermarks import attacks, cells, given, prepare
from experiments.launch import checks
from experiments.pages import waves as page

SETTINGS = ("", "laptop", "tiny")
LEAST = dict.fromkeys(("num", "training.steps", "gradient_steps", "training.mark_steps"), 1)
LEAST |= {"size": 64, "user": 0, "noise": 0}
MARK_STEPS = 600  # where the config leaves them open
READERS = {  # of settings, among the attacks
    "noise": tuple(attacks.TIMES),
    "gradient_steps": attacks.GRADIENT,
    "training.steps": attacks.SMALL,
    "training.real": (attacks.CLASSIFY_REAL,),
    "strengths.single": tuple(distortions.SINGLE),
    "strengths.combined": tuple(distortions.COMBINED),
    "strengths.learned": attacks.LEARNED,
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.images = prepare.SYNTHETIC  # made up here, or a glob or a folder of pictures
    c.size = 512  # pixels: the side of the square that is cut from each picture
    c.num = placeholder(int)  # cuts in all; None: the middle of each picture, 16 of synthetic ones
    c.marks = (*marks.MARKS, given.TRAINED)
    c.given = given.settings()  # a user's own weights
    c.user = 0  # whose key is embedded
    c.attacks = attacks.DEFAULT
    c.strengths = dict(  # in [0, 1], of each attack's native range, from weak to strong
        single=(0.2, 0.4, 0.6, 0.8, 1.0),
        combined=(0.04, 0.08, 0.12, 0.16, 0.2),
        learned=(0.25, 0.5, 0.75, 1.0),  # by gradients: of 8/255
    )
    c.setup = "removal"  # attacked: the marked pictures; spoofing: the unmarked; combined: both
    c.quality = "Q3"  # subset of the metrics: PSNR, SSIM, NMI; Q4 and Q8 need weights under `given`
    c.users = (100, 1_000, 1_000_000)  # among whom the user is identified
    c.gradient_steps = 200  # of attacks by gradients
    c.noise = 1.0  # of the strongest regeneration, in deviations of the latent
    c.training = dict(  # of the small networks, for the attacks that need them
        steps=600,
        init_from="",  # safetensors of the auto-encoder, as a run leaves it in prepared/; "" trains it
        real="",  # photographs that nobody marked, a glob or a folder, for AdvCls-Real&WM-Small
        mark_steps=placeholder(int),  # of the mark encoder_decoder; None: 600
        mark_from="",  # its safetensors, as a run leaves them in prepared/; "" trains it
    )
    c.executor = "local"  # local, process, ray
    c.workers = placeholder(int)  # None: one a core
    c.retries = 2  # of a cell whose worker died
    c.address = ""  # of a running Ray cluster; "" starts one here
    if arg == "laptop":
        c.size = 256
        c.num = 16
        c.marks = ("dwt_dct_svd", "dct", "spread", given.TRAINED)
        c.attacks = (*distortions.NAMES, attacks.REGENERATE, attacks.EMBED)
        c.gradient_steps = 10
        c.training.steps = 300
    elif arg == "tiny":
        c.size = 64
        c.num = 2
        c.marks = ("cox", "ring")
        c.attacks = ("Dist-JPEG", "DistCom-Photo", attacks.EMBED)
        c.strengths.single = (0.5, 1.0)
        c.strengths.combined = (0.1, 0.2)
        c.strengths.learned = (0.5, 1.0)
        c.users = (100,)
        c.gradient_steps = 2
        c.training.steps = 2
    return c


def sweep() -> Iterator[dict[str, Any]]:
    for setup in protocol.SETUPS:
        yield {"setup": setup}


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither pictures nor devices to be seen."""
    attacks.check(c.attacks)
    checks.check_names(c, "attacks", attacks.NAMES)
    given.check(c)
    checks.check_names(c, "marks")
    for kind, strengths in c.strengths.items():
        if not strengths or list(strengths) != sorted(set(strengths)) or not 0 < strengths[0] <= strengths[-1] <= 1:
            raise InputError(f"strengths.{kind}={tuple(strengths)}: they rise and lie in (0, 1], such as (0.5, 1.0)")
    one_of("setup", c.setup, protocol.SETUPS)
    one_of("quality", c.quality, quality.SUBSETS)
    there = {*quality.METRICS, *given.measured(c.given)}
    lacking = ", ".join(name for name in quality.SUBSETS[c.quality] if name not in there)
    if lacking:
        raise InputError(
            f"quality={c.quality} needs {lacking}, whose weights are not there; take Q3 (pixels alone), or set "
            "them under given"
        )
    for name in ("fid", "clip_fid"):
        if c.given[name] and c.num == 1:
            raise InputError(f"num=1 and given.{name} is set: a covariance needs two pictures at least")
    if any(users < 2 for users in c.users):
        raise InputError(f"users={tuple(c.users)}: one is identified among at least 2")
    checks.check_least(c, LEAST)
    for name in c.marks:
        if name in marks.MARKS and marks.MARKS[name].is_bits:
            marks.check_size((c.size, c.size, 3), len(marks.MARKS[name].key_fn(c.user)))
    if c.size % 8 and set(c.attacks) & set(attacks.SMALL):
        raise InputError(f"size={c.size}: the small networks need a multiple of 8; take {c.size // 8 * 8}")
    if c.training.init_from:
        if not set(attacks.AUTO_ENCODED) & set(c.attacks):
            raise InputError(
                f"training.init_from={c.training.init_from!r} is read by {', '.join(attacks.AUTO_ENCODED)} alone; "
                "leave it out"
            )
        if not pathlib.Path(c.training.init_from).expanduser().is_file():
            raise InputError(f"training.init_from={c.training.init_from!r} is not there; give a safetensors file")
    check_training(c)
    check_surrogates(c)
    if c.images != prepare.SYNTHETIC:
        prepare.files_of(c.images)
    if c.address and c.executor != "ray":
        raise InputError(f"address={c.address!r} is read by executor=ray alone; leave it out")
    executors.check(c.executor, c.workers or 0, c.retries)
    checks.check_unread(c, [get_config(arg) for arg in SETTINGS], _unread(c))


def _unread(c: ml_collections.ConfigDict) -> Iterator[tuple[str, str]]:
    """Names of settings that no chosen attack or mark reads, and why."""
    for name, readers in READERS.items():
        if not set(c.attacks) & set(readers):
            yield name, f"it belongs to {', '.join(readers)}"
    if all(given.is_informed(name) for name in c.marks):
        yield "users", f"marks of bits or rings alone tell them apart, and marks={c.marks}"
    if c.executor == "local":
        yield "workers", "executor=local has none; take process or ray"


def check_training(c: ml_collections.ConfigDict) -> None:
    """Refuse settings of the trained mark that nothing reads, and weights that are not there."""
    for name, unset in (("mark_steps", None), ("mark_from", "")):
        if c.training[name] != unset and given.TRAINED not in c.marks:
            raise InputError(f"training.{name}={c.training[name]!r} is read by the mark {given.TRAINED} alone")
    if c.training.mark_from and c.training.mark_steps is not None:
        raise InputError("training.mark_steps is not read, as training.mark_from has trained weights; leave it out")
    if c.training.mark_from and not pathlib.Path(c.training.mark_from).expanduser().is_file():
        raise InputError(f"training.mark_from={c.training.mark_from!r} is not there; give a safetensors file")


def check_surrogates(c: ml_collections.ConfigDict) -> None:
    """Refuse surrogates whose other side is not there: photographs, or a second user's marked pictures."""
    if attacks.CLASSIFY_REAL in c.attacks:
        if not c.training.real:
            raise InputError(
                f"attacks: {attacks.CLASSIFY_REAL} needs photographs that nobody marked; set training.real to a glob "
                "or a folder, or leave the attack out"
            )
        prepare.files_of(c.training.real)
    decoders = [name for name in c.marks if name in given.DECODERS]
    if attacks.CLASSIFY_USERS in c.attacks and decoders:
        raise InputError(
            f"attacks: {attacks.CLASSIFY_USERS} needs a second user's pictures, and those of {', '.join(decoders)} are "
            "marked elsewhere; leave the attack or the mark out"
        )


def check_networks(c: ml_collections.ConfigDict, own: dict[str, Any]) -> None:
    """Refuse a user's networks that are not what the attacks need, once for all cells."""
    chosen = set(c.attacks)
    if chosen & set(attacks.REGENERATE_OWN):
        is_noised = len(attacks.own_calls(own)) == 2 or chosen & set(attacks.AUTO_ENCODED)
        if not is_noised and c.noise != get_config().noise:
            raise InputError(
                f"noise={c.noise} is not read, as given.network.calls has a function regenerate; leave it out"
            )
    for name in chosen & {attacks.EMBED_OWN, attacks.RN18}:
        from alignment.watermark import learned  # imports JAX, which a grid of distortions does not need

        learned.check_encoder(attacks.encoder(name, "", own), c.size, name)


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
    check(c)
    folder = pathlib.Path(workdir).absolute()  # a Ray worker may stand elsewhere
    prepared = folder / "prepared"
    own = given.plain(c)
    mark_fn = functools.partial(given.mark_of, prepared=prepared, given=own)
    given.measures(own)  # weights of another network are refused here, not by every cell
    for name in set(given.DECODERS) & set(c.marks):
        mark_fn(name)
    check_networks(c, own)
    images, names = prepare.pictures(c.images, size=c.size, num=c.num, seed=c.seed, workdir=folder)
    if given.TRAINED in c.marks:
        steps = MARK_STEPS if c.training.mark_steps is None else c.training.mark_steps
        prepare.train_mark(prepared, seed=c.seed, steps=steps, start=c.training.mark_from)
    ready = {
        name: prepare.own_pictures(c.given[name].pictures, images.shape, name)
        for name in c.marks
        if name in given.DECODERS
    }
    who = dict(user=c.user, is_second_user=attacks.CLASSIFY_USERS in c.attacks)
    digests = prepare.marked(images, c.marks, folder=prepared, mark_fn=mark_fn, ready=ready, **who)
    training = {name: c.training[name] for name in ("steps", "init_from")}
    more = dict(seed=c.seed, training=training, made_from=digests)
    photographs = prepare.real(c.training.real, c.size) if attacks.CLASSIFY_REAL in c.attacks else None
    prepare.networks(c.attacks, c.marks, folder=prepared, photographs=photographs, **more)
    strengths = {name: strengths_of(c, name) for name in c.attacks}
    plan = cells.cells_of(c.marks, strengths)
    options = {"steps": c.gradient_steps, "noise": c.noise}
    weights = loader.digest_files(sorted(prepared.glob("*.safetensors")))
    reads = [*digests, weights, c.setup, str(c.user), str(c.seed), str(options), str(own), str(plan)]
    grid = cells.Grid(str(folder), loader.digest(texts=reads), c.setup, c.user, c.seed, options, own)
    files.sweep(folder)
    pool = dict(executor=c.executor, workers=c.workers or 0, retries=c.retries, address=c.address)
    rows = cells.through(grid, plan, **pool)
    return page.write(folder, rows, subset=c.quality, users=tuple(c.users), names=names, setup=c.setup)


def strengths_of(c: ml_collections.ConfigDict, attack: str) -> tuple[float, ...]:
    kind = "learned" if attack in attacks.LEARNED else "combined" if attack in distortions.COMBINED else "single"
    return tuple(c.strengths[kind])


METRICS = page.METRICS
headline = page.headline
