"""What the web page looks like, and what its buttons do: gradio's components around [`look`]."""

import html
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from pix2seq_hf.app.files import Visits
from pix2seq_hf.app.limits import Limits, Watch, check_number_of_files, read_upload, readable_name
from pix2seq_hf.app.runs import look, seldom, shrink
from pix2seq_hf.data.pictures import PICTURE_SUFFIXES, PictureError
from pix2seq_hf.data.scenes import SceneOptions, draw_scene
from pix2seq_hf.data.video import Source
from pix2seq_hf.engine import CAPTIONS, DETECTION, KEYPOINTS, SEGMENTATION, TaskOptions
from pix2seq_hf.prediction_folder import PredictionFolder
from pix2seq_hf.results import Pix2SeqResult
from pix2seq_hf.visualization import class_color

TASK_LABELS = {DETECTION: "Objects", SEGMENTATION: "Masks", KEYPOINTS: "Keypoints", CAPTIONS: "Captions"}
SHOWN_SIDE = 1280  # longest side in pixels of the pictures on the page; downloads have all of them
SECONDS_BETWEEN_DRAWINGS = 0.3
EXAMPLES = ((3, (480, 640)), (11, (640, 480)), (19, (480, 640)))  # number of a drawn scene, height and width
MOST_SAMPLES = 16
FAILURE = "That did not work: too many are waiting, or the server had to give up. Try again in a minute."

THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="zinc",
    font=["ui-sans-serif", "system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)
# Beside each other where there is room; on a phone what was found stands before the options.
STYLE = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
#layout { display: grid; gap: 1rem; align-items: start;
  grid-template: "pick found" auto "options found" 1fr / 2fr 3fr; }
#layout > * { min-width: 0 !important; }
#pick { grid-area: pick; }
#options { grid-area: options; }
#found-side { grid-area: found; }
#layout .html-container { padding: 0 !important; }
.status { padding: 0.6rem 0.9rem; border-radius: 8px; border-left: 4px solid var(--primary-500);
  background: var(--background-fill-secondary); overflow-wrap: anywhere; }
.status.problem { border-left-color: #dc2626; }
.status.done { border-left-color: #16a34a; }
.status progress { display: block; width: 100%; height: 6px; margin: 0.5rem 0; border: 0; border-radius: 3px;
  appearance: none; overflow: hidden; background: var(--border-color-primary); }
.status progress::-webkit-progress-bar { background: var(--border-color-primary); }
.status progress::-webkit-progress-value { background: var(--primary-500); }
.status progress::-moz-progress-bar { background: var(--primary-500); }
.status .rest { display: block; opacity: 0.75; }
.found blockquote { margin: 0 0 0.75rem; padding: 0.2rem 0.9rem; border-left: 4px solid var(--border-color-primary); }
.found table { width: 100%; margin: 0; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.found table, .found tr, .found th, .found td { border: 0 !important; }
.found th, .found td { padding: 0.35rem 0.5rem; text-align: left;
  border-bottom: 1px solid var(--border-color-primary) !important; }
.found .number { text-align: right; }
.found .color { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.5em; border-radius: 3px; }
.found .scroll { max-height: 22rem; overflow: auto; }
@media (max-width: 760px) {
  #layout { grid-template: "pick" "found" "options" / 1fr; }
  .found .wide { display: none; }
}
"""
# Screen readers say what changes in a region that was there before.
ON_LOAD = """() => { for (const name of ['status', 'batch-status']) {
  const part = document.getElementById(name);
  if (part) { part.setAttribute('role', 'status'); part.setAttribute('aria-live', 'polite'); } } }"""


# In place of the `preprocess` of gradio's fields, which opens pictures of any size and says of broken ones what Pillow
# says. Not methods of sub-classes: gradio writes a file beside the source of every class that is made of its own.


def uploaded_picture(payload: Any) -> tuple[str, str] | None:
    """The file of an image field and what the visitor calls it; [`read_upload`] opens it."""
    if payload is None or payload.path is None:
        return None
    return payload.path, readable_name(payload.orig_name or Path(payload.path).name)


def uploaded_files(payload: Any) -> list[tuple[str, str]]:
    """The files of a field for many, each with its name."""
    files = [] if payload is None else getattr(payload, "root", [payload])
    return [(file.path, readable_name(file.orig_name or Path(file.path).name)) for file in files]


def status_html(text: str, kind: str = "", rest: Sequence[str] = (), share: float | None = None) -> str:
    """One line about what is going on, `kind` "", "done" or "problem", a bar, and further lines under it."""
    bar = "" if share is None else f'<progress value="{share:.3f}" aria-label="pictures that are done"></progress>'
    lines = "".join(f'<span class="rest">{html.escape(line)}</span>' for line in rest)
    return f'<div class="status {kind}">{html.escape(text)}{bar}{lines}</div>'


def found_html(result: Pix2SeqResult) -> str:
    """Captions and a table of the objects."""
    captions = "".join(f"<blockquote>{html.escape(caption)}</blockquote>" for caption in result.captions)
    rows = []
    for found in result.objects:
        color = ",".join(map(str, class_color(found.label_id)))
        corners = " ".join(f"<td class='number wide'>{number:.0f}</td>" for number in found.box_xyxy)
        rows.append(
            f'<tr><td><span class="color" style="background: rgb({color})"></span>{html.escape(found.label)}</td>'
            f'<td class="number">{found.score:.2f}</td>{corners}</tr>'
        )
    if not rows:
        return f'<div class="found">{captions}</div>'
    sides = "".join(f'<th class="number wide">{side}</th>' for side in ("left", "top", "right", "bottom"))
    head = f'<tr><th>class</th><th class="number">score</th>{sides}</tr>'
    return (
        f'<div class="found">{captions}<div class="scroll" tabindex="0" aria-label="Objects that were found"><table>'
        f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def summary(result: Pix2SeqResult) -> str:
    """How much was found, in words."""
    number = len(result.objects)
    parts = [] if result.tasks == (CAPTIONS,) else [f"{number or 'no'} object{'s' * (number != 1)}"]
    if result.captions:
        parts.append(f"{len(result.captions)} caption{'s' * (len(result.captions) != 1)}")
    return " and ".join(parts)


def save_shown(result: Pix2SeqResult, folder: Path, number: int) -> str:
    """Draw a result at the size of the page; return the file's name."""
    path = folder / f"shown-{number:04d}.jpg"
    shrink(result, SHOWN_SIDE).draw().save(path, "JPEG", quality=90, subsampling=0)
    return str(path)


def draw_examples(folder: Path) -> list[str]:
    """Draw the example pictures; return their files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, size in EXAMPLES:
        path = folder / f"scene-{number}.png"
        options = SceneOptions(image_size=size, num_objects=(4, 9), diameters=(60, 300), needs_person=True)
        draw_scene(7, "app", number, options).picture.save(path)
        paths.append(str(path))
    return paths


class Desk:
    r"""What the buttons of the page do.

    Args:
        model, processor: See [`run_tasks`].
        limits ([`Limits`]): What visitors may ask for.
        folder (`Path`): Where results go; a visitor's have a folder of their own."""

    def __init__(self, model: Any, processor: Any, limits: Limits, folder: Path):
        self.model, self.processor, self.limits = model, processor, limits
        self.visits = Visits(folder)

    def options(self, tasks: Sequence[str], threshold: float, classes: Sequence[str], num_samples: float):
        """The [`TaskOptions`] of the page's fields. Raises ValueError if they make no sense."""
        if not tasks:
            raise ValueError("Choose at least one task.")
        return TaskOptions(
            tasks=tasks,
            threshold=threshold,
            classes=classes or None,
            num_samples=int(num_samples) if SEGMENTATION in tasks else None,
            seed=0,
        )

    def look_once(self, upload, tasks, threshold, classes, num_samples, request: gr.Request) -> Iterator[tuple]:
        """Look at one picture: drawing, status, table, and the two files when all is done."""
        no_files = gr.DownloadButton(interactive=False), gr.DownloadButton(interactive=False)
        visit = self.visits.begin(request.session_hash)
        try:
            if upload is None:
                raise ValueError("Choose a picture first: upload one, or take an example.")
            options = self.options(tasks, threshold, classes, num_samples)
            path, name = upload
            picture = read_upload(path, name, self.limits)
            folder, watch = visit.new_folder(), Watch(self.limits.max_seconds, visit.stop)
            for number, update in enumerate(
                seldom(look(self.model, self.processor, picture, options, watch), SECONDS_BETWEEN_DRAWINGS)
            ):
                shown, table = save_shown(update.result, folder, number), found_html(update.result)
                if update.stage:
                    so_far = f"; {summary(update.result)} so far" if update.result.objects else ""
                    yield shown, status_html(f"{update.stage} …{so_far}"), table, *no_files
            files = _save_downloads(update.result, folder, name)
            yield (
                shown,
                _end_status(update),
                table,
                *(gr.DownloadButton(value=file, interactive=True) for file in files),
            )
        except ValueError as error:  # of a picture or an option: said where the visitor looks
            yield None, status_html(str(error), "problem"), "", *no_files

    def look_at_all(self, uploads, tasks, threshold, classes, num_samples, request: gr.Request) -> Iterator[tuple]:
        """Look at many pictures: drawings, status, and an archive when all is done."""
        no_file = gr.DownloadButton(interactive=False)
        visit = self.visits.begin(request.session_hash)
        try:
            check_number_of_files(uploads, self.limits)
            options = self.options(tasks, threshold, classes, num_samples)
        except ValueError as error:
            yield [], status_html(str(error), "problem"), no_file
            return
        folder, stop = visit.new_folder(), visit.stop
        output = PredictionFolder(
            str(folder / "found"), [Path(name) for _, name in uploads], self.model.config.id2label
        )
        shown: list[tuple[str, str]] = []
        problems: list[str] = []
        for number, (path, name) in enumerate(uploads, start=1):
            if stop.is_set():
                break
            text, share = f"Picture {number} of {len(uploads)}: {name} …", (number - 1) / len(uploads)
            yield shown, status_html(text, rest=problems, share=share), no_file
            try:
                picture = read_upload(path, name, self.limits)
                watch = Watch(self.limits.max_seconds, stop)
                *_, update = look(self.model, self.processor, picture, options, watch)
            except PictureError as error:
                problems.append(str(error))
                continue
            if update.problem and stop.is_set():
                break
            if update.problem:
                problems.append(f"{name}: {update.problem}")
            output.write(Source(Path(name), None, None, lambda: None), number, update.result)
            shown.append((save_shown(update.result, folder, number), name))
        output.finish()
        archive = shutil.make_archive(str(folder / "found"), "zip", folder / "found")
        shutil.rmtree(folder / "found")
        text = f"{len(shown)} of {len(uploads)} pictures done{'; stopped.' if stop.is_set() else '.'}"
        kind = "problem" if problems or stop.is_set() else "done"
        file = gr.DownloadButton(value=archive, interactive=True) if shown else no_file
        yield shown, status_html(text, kind, problems), file

    def announce(self, request: gr.Request) -> str:
        """Say that a request waits for its turn; what the visitor asked for before is stopped."""
        self.visits.stop(request.session_hash)
        return status_html("Waiting for a turn …")

    def stop(self, request: gr.Request):
        """Stop what the visitor has asked for."""
        self.visits.stop(request.session_hash)

    def leave(self, request: gr.Request):
        """The visitor has closed the page."""
        self.visits.leave(request.session_hash)


def _end_status(update: Any) -> str:
    """What is said when a run is over."""
    text = f"Found {summary(update.result)}"
    if update.problem:
        return status_html(update.problem, "problem", [f"{text} until then."])
    return status_html(f"{text}.", "done")


def _save_downloads(result: Pix2SeqResult, folder: Path, name: str) -> tuple[str, str]:
    """Write the drawing in the size of the picture, and the JSON; return their files."""
    stem = Path(name).stem or "picture"
    drawing, numbers = folder / f"{stem}-found.png", folder / f"{stem}-found.json"
    result.draw().save(drawing, "PNG", compress_level=4)
    numbers.write_text(result.to_json(indent=1) + "\n", encoding="utf-8")
    return str(drawing), str(numbers)


def build_page(desk: Desk, title: str, example_folder: Path) -> gr.Blocks:
    r"""Put the page together.

    Args:
        desk ([`Desk`]): What its buttons do.
        title (`str`): Name of the model.
        example_folder (`Path`): Where example pictures are drawn, inside of the server's temporary folder.
    Returns:
        `gradio.Blocks`, not yet launched."""
    config, limits = desk.model.config, desk.limits
    tasks = [name for name in TASK_LABELS if name in config.tasks]
    settings = (desk.model.generation_config.task_settings or {}) if desk.model.generation_config else {}
    num_samples = settings.get("11", {}).get("num_return_sequences", 8)
    private = {"api_visibility": "private", "show_progress": "hidden"}
    running = {**private, "concurrency_limit": 1, "concurrency_id": "model", "trigger_mode": "always_last"}
    quick = {**private, "queue": False}

    with gr.Blocks(title=f"Pix2Seq: {title}", analytics_enabled=False) as page:
        gr.Markdown(
            f"# Pix2Seq\nA model that describes pictures as one sequence of tokens. Model: **{html.escape(title)}**, "
            f"{len(config.id2label)} classes."
        )
        with gr.Row(elem_id="layout"):
            with gr.Column(elem_id="pick"), gr.Tabs():
                with gr.Tab("One picture") as one_tab:
                    upload = gr.Image(
                        label="Picture",
                        sources=["upload", "webcam", "clipboard"],
                        height=300,
                        elem_id="upload",
                        buttons=[],
                    )
                    paths = draw_examples(example_folder)
                    examples = gr.Dataset(
                        label="Drawn examples",
                        components=[upload],
                        samples=[[path] for path in paths],
                        type="index",
                        elem_id="examples",
                    )
                    with gr.Row():
                        start = gr.Button("Look", variant="primary", elem_id="look", min_width=100)
                        stop = gr.Button("Stop", elem_id="stop", min_width=100)
                with gr.Tab("Many pictures") as many_tab:
                    uploads = gr.File(
                        label=f"Pictures (up to {limits.max_files})",
                        file_count="multiple",
                        file_types=list(PICTURE_SUFFIXES),
                        elem_id="uploads",
                        height=240,
                    )
                    with gr.Row():
                        start_all = gr.Button("Look at all", variant="primary", elem_id="look-all", min_width=100)
                        stop_all = gr.Button("Stop", elem_id="stop-all", min_width=100)
            with gr.Column(elem_id="options"):
                gr.Markdown(f"<small>Pictures of {limits}; {limits.max_seconds:g} s per picture. They are deleted "
                            f"{limits.keep_minutes:g} minutes after their last use.</small>")  # fmt: skip
                chosen = gr.CheckboxGroup(
                    [(TASK_LABELS[name], name) for name in tasks], value=tasks, label="Tasks", elem_id="tasks"
                )
                threshold = gr.Slider(
                    0, 1, 0.3, step=0.05, label="Threshold", info="Objects of a lower score are left out.",
                    elem_id="threshold", buttons=[],
                )  # fmt: skip
                classes = gr.Dropdown(
                    sorted(set(config.id2label.values())), value=[], multiselect=True, label="Classes",
                    info="None chosen: all of them.", elem_id="classes",
                )  # fmt: skip
                samples = gr.Slider(
                    1, MOST_SAMPLES, min(num_samples, MOST_SAMPLES), step=1, label="Samples",
                    info="Outlines per object, averaged into its mask: fewer are faster.",
                    visible=SEGMENTATION in tasks, elem_id="samples", buttons=[],
                )  # fmt: skip
            with gr.Column(elem_id="found-side"):
                with gr.Column(visible=True) as one:
                    status = gr.HTML(status_html("Choose a picture and press Look."), elem_id="status")
                    drawing = gr.Image(
                        label="Found", format="jpeg", interactive=False, elem_id="drawing", buttons=["fullscreen"],
                        min_width=280,
                    )  # fmt: skip
                    table = gr.HTML(elem_id="found")
                    with gr.Row():
                        picture_file = gr.DownloadButton("Picture (PNG)", interactive=False, elem_id="get-picture")
                        json_file = gr.DownloadButton("Objects (JSON)", interactive=False, elem_id="get-json")
                with gr.Column(visible=False) as many:
                    batch_status = gr.HTML(
                        status_html("Choose pictures and press Look at all."), elem_id="batch-status"
                    )
                    gallery = gr.Gallery(
                        label="Found", columns=2, interactive=False, object_fit="contain", elem_id="gallery", buttons=[]
                    )
                    archive = gr.DownloadButton("All results (ZIP)", interactive=False, elem_id="get-archive")

        # They keep these as long as no event returns a new field, only values: not `gr.Examples`, for example.
        upload.preprocess, uploads.preprocess = uploaded_picture, uploaded_files
        fields = [chosen, threshold, classes, samples]
        for button, act, inputs, outputs, line in (
            (start, desk.look_once, upload, [drawing, status, table, picture_file, json_file], status),
            (start_all, desk.look_at_all, uploads, [gallery, batch_status, archive], batch_status),
        ):
            run = button.click(desk.announce, None, line, **quick).then(act, [inputs, *fields], outputs, **running)
            run.failure(lambda: status_html(FAILURE, "problem"), None, line, **quick)
        stop.click(desk.stop, **quick)
        stop_all.click(desk.stop, **quick)
        examples.click(lambda number: paths[number], examples, upload, **quick)
        for tab, is_one in ((one_tab, True), (many_tab, False)):
            columns = gr.Column(visible=is_one), gr.Column(visible=not is_one)
            tab.select(lambda columns=columns: columns, None, [one, many], **quick)
        page.load(None, js=ON_LOAD)
        page.unload(desk.leave)
    return page.queue(max_size=limits.max_waiting)
