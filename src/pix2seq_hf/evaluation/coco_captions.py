"""How pycocoevalcap is asked: the words and the scores that papers on captions give; it needs Java."""

import contextlib
import io
import shutil
import socket
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
PATIENCE = 30.0  # seconds without a byte until a server counts as out of reach


def missing_tools() -> str | None:
    """What the COCO caption evaluation lacks on this machine, in one line with the remedy; `None` if nothing."""
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError:
        return "pycocoevalcap is not installed: pip install 'pix2seq_hf[captions]'"
    if shutil.which("java") is None:
        return (
            "Java is not installed (there is no program 'java'): on Debian and Ubuntu, apt install default-jre-headless"
        )
    return None


def load_spice_models() -> None:
    r"""Load the models of SPICE from the internet, unless an earlier use did: 380 MB, into the folder of pycocoevalcap.

    Raises:
        OSError: If they cannot be loaded; says where they may be put by hand."""
    from pycocoevalcap.spice import get_stanford_models as loader

    folder, patience = Path(loader.__file__).parent / loader.SPICELIB, socket.getdefaulttimeout()
    if all((folder / name).is_file() for name in SPICE_MODELS):
        return
    socket.setdefaulttimeout(PATIENCE)  # pycocoevalcap would wait for as long as the system does
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            loader.get_stanford_models()
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        reason, address = " ".join(str(error).split()), f"http://nlp.stanford.edu/software/{loader.CORENLP}.zip"
        raise OSError(
            f"the models of SPICE could not be loaded ({reason}): take {address} from elsewhere, and put "
            f"{' and '.join(SPICE_MODELS)} of it into {folder}; or leave SPICE out"
        ) from None
    finally:
        socket.setdefaulttimeout(patience)


def split_like_papers(captions: Sequence[str]) -> list[str]:
    r"""Split captions with the Stanford tokenizer that pycocoevalcap brings, and drop punctuation as it does.

    Its own `PTBTokenizer` writes into the folder of the library, which need not be writable, and reads with the
    encoding of the locale; here the captions go through a pipe, as UTF-8.

    Args:
        captions (`Sequence[str]`): Without line breaks.
    Returns:
        `list[str]`: Lower-case words, separated by one blank.
    Raises:
        OSError: If Java fails."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    options = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    done = subprocess.run(
        ["java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-cp", str(jar), *options],
        input="".join(f"{caption}\n" for caption in captions),
        capture_output=True,
        encoding="utf-8",
    )
    lines = done.stdout.split("\n")[:-1]
    if done.returncode or len(lines) != len(captions):
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise OSError(f"the Stanford tokenizer gave {len(lines)} lines for {len(captions)} captions: {reason}")
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.split(" ") if word and word not in dropped) for line in lines]


def score_like_papers(
    captions: Mapping[int, str], references: Mapping[int, Sequence[str]], use_spice: bool = False
) -> dict[str, float]:
    r"""Compute the scores of the COCO caption evaluation.

    Args:
        captions (`Mapping[int, str]`): One per picture id, split by [`split_like_papers`]; may be empty.
        references (`Mapping[int, Sequence[str]]`): Those of the annotations, split as well.
        use_spice (`bool`): SPICE too, see [`load_spice_models`]. It needs 8 GiB of memory, and was written for Java 8.
    Returns:
        `dict[str, float]`: `BLEU_1` to `BLEU_4`, `METEOR`, `ROUGE_L`, `CIDEr`, and `SPICE` if asked for.
    Raises:
        OSError: If a Java program fails."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    if use_spice:
        load_spice_models()  # fails before the others have taken their time
    ours = {image_id: [caption] for image_id, caption in captions.items()}
    theirs = {image_id: list(references[image_id]) for image_id in captions}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = Bleu(4).compute_score(theirs, ours, verbose=0)
        scores = {f"BLEU_{order}": float(score) for order, score in enumerate(bleu, start=1)}
        scores["METEOR"] = _meteor(theirs, ours)
        scores["ROUGE_L"] = float(Rouge().compute_score(theirs, ours)[0])
        scores["CIDEr"] = float(Cider().compute_score(theirs, ours)[0])
        if use_spice:
            try:
                from pycocoevalcap.spice.spice import Spice

                scores["SPICE"] = float(Spice().compute_score(theirs, ours)[0])
            except (OSError, ValueError, subprocess.CalledProcessError) as error:
                raise OSError(f"SPICE's Java program failed ({error}): it needs 8 GiB of memory, and Java 8") from None
    return scores


def _meteor(references: Mapping[int, Sequence[str]], captions: Mapping[int, Sequence[str]]) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    try:
        return float(meteor.compute_score(references, captions)[0])
    except (OSError, ValueError) as error:  # it ended, or what it wrote is no number
        raise OSError(f"METEOR's Java program failed ({error}): it needs 2 GiB of memory") from None
    finally:
        for pipe in (meteor.meteor_p.stdin, meteor.meteor_p.stdout, meteor.meteor_p.stderr):
            with contextlib.suppress(OSError):
                pipe.close()
        if meteor.lock.locked():  # after an error; its destructor would wait for it for ever
            meteor.lock.release()
