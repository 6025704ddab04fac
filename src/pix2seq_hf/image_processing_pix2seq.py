"""How does a picture become the network's input: decoded upright, resized with its aspect ratio kept, padded."""

import base64
import io
import os
import struct
import urllib.request
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import (
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    is_valid_image,
    make_flat_list_of_images,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import is_torchvision_available

# What Pillow's decoders raise for damaged files, beside OSError.
DECODING_ERRORS = (
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# Sent with requests for pictures: some servers refuse Python's own name.
USER_AGENT = "Mozilla/5.0 (compatible; pix2seq_hf)"
# EXIF values of pictures that lie on their side: width and height change places.
ORIENTATION_TAG = 0x0112
LYING_ORIENTATIONS = (5, 6, 7, 8)
# How a picture of each EXIF orientation is turned upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# float32 pixels of a 16-bit picture on the scale of an 8-bit one: 65535 / 255.
SIXTEEN_BIT_STEP = 257
# Channel counts in the order in which an ambiguous array is read: (1, 5000, 3) is an RGB row, not a gray column.
CHANNEL_COUNTS = (3, 4, 1)


def resized_size(original_size: Sequence[int], target_size: Sequence[int]) -> tuple[int, int]:
    r"""Size of a picture after resizing it to fit into `target_size` with its aspect ratio kept; it may grow.

    Args:
        original_size (`Sequence[int]`): Height and width of the picture in pixels.
        target_size (`Sequence[int]`): Height and width of the padded network input in pixels.
    Returns:
        `tuple[int, int]`: Height and width of the part of the network input that the picture fills, at least 1.
    Raises:
        ValueError: If a side is below 1.
    Source: `preprocess_image` of the reference implementation; `golden/tasks/README.md`, section 5."""
    if min(*original_size, *target_size) < 1:
        raise ValueError(f"sizes must be positive, got picture {tuple(original_size)} and target {tuple(target_size)}")
    height, width = (np.float32(side) for side in original_size)
    scale = min(np.float32(target_size[0]) / height, np.float32(target_size[1]) / width)
    # np.rint rounds half to even. Departure: the reference fails where a side rounds to 0 (a 1 x 5000 picture).
    return max(1, int(np.rint(scale * height))), max(1, int(np.rint(scale * width)))


def padding_scale(original_size: Sequence[int], target_size: Sequence[int]) -> np.ndarray:
    r"""Factor from coordinates normalised by the padded network input to pixels of the original picture.

    Args:
        original_size (`Sequence[int]`): Height and width of the picture in pixels.
        target_size (`Sequence[int]`): Height and width of the padded network input in pixels.
    Returns:
        `np.ndarray` of shape `(2,)`, float32: factors of y and x.
    Source: `scale = (image_size / unpadded_image_size) * orig_image_size` of the reference, in that order."""
    unpadded = np.array(resized_size(original_size, target_size), dtype=np.float32)
    return np.array(target_size, dtype=np.float32) / unpadded * np.array(original_size, dtype=np.float32)


def scale_boxes(boxes_yxyx: torch.Tensor, original_size: Sequence[int], target_size: Sequence[int]) -> torch.Tensor:
    r"""Turn normalised boxes of the padded network input into pixel boxes of the original picture.

    Args:
        boxes_yxyx (`torch.FloatTensor` of shape `(num_boxes, 4)`): In [0, 1] of the padded network input.
        original_size (`Sequence[int]`): Height and width of the picture in pixels.
        target_size (`Sequence[int]`): Height and width of the padded network input in pixels.
    Returns:
        `torch.FloatTensor` of shape `(num_boxes, 4)`: `xmin, ymin, xmax, ymax` in pixels, not sorted or clipped."""
    scale = torch.from_numpy(padding_scale(original_size, target_size)).to(boxes_yxyx.device)
    boxes_yxyx = boxes_yxyx.float() * scale.repeat(2)
    return boxes_yxyx[..., [1, 0, 3, 2]]


def crop_region(box_yxyx: torch.Tensor, image_size: Sequence[int], pad_scale: float) -> tuple[int, int, int, int]:
    r"""The part of a picture to cut out around an object.

    Args:
        box_yxyx (`torch.FloatTensor` of shape `(4,)`): Normalised by the picture.
        image_size (`Sequence[int]`): Height and width of the picture in pixels.
        pad_scale (`float`): Share of the box's height and width that is added on each side, where the picture has it.
    Returns:
        `tuple[int, int, int, int]`: top, left, height, width in pixels.
    Source: `golden/tasks/README.md`, section 7; the order of operations in float32 decides the last pixel."""
    box = np.asarray(box_yxyx, dtype=np.float32)
    size = np.array(image_size, dtype=np.int64)
    last = (size - 1).astype(np.float32)
    start = np.floor(box[:2] * last).astype(np.int64)
    end = np.ceil(box[2:] * last).astype(np.int64)
    padding = ((end - start + 1).astype(np.float32) * np.float32(pad_scale)).astype(np.int64)
    start, end = np.maximum(start - padding, 0), np.minimum(end + padding, size - 1)
    height, width = (end - start + 1).tolist()
    return (*start.tolist(), height, width)


def crop_points(points_yx: torch.Tensor, region: Sequence[int], image_size: Sequence[int]) -> torch.Tensor:
    r"""Refer coordinates to a part of a picture; nothing is clipped, and no number is special.

    Args:
        points_yx (`torch.FloatTensor` of shape `(..., 2 * num_points)`): `y, x, ...` normalised by the picture; a box
            is two points.
        region (`Sequence[int]`): top, left, height, width in pixels, as [`crop_region`] returns it.
        image_size (`Sequence[int]`): Height and width of the picture in pixels.
    Returns:
        `torch.FloatTensor` of the shape of `points_yx`: Normalised by the region."""
    offset, extent = torch.tensor(region, dtype=torch.float32).split(2)
    size = torch.tensor(image_size, dtype=torch.float32)
    return ((points_yx.unflatten(-1, (-1, 2)) - offset / size) * (size / extent)).flatten(-2)


def pixel_size(image_size: Any) -> tuple[int, int]:
    """Height and width as two integers, from a tuple, a tensor row or an array."""
    height, width = image_size.tolist() if hasattr(image_size, "tolist") else image_size
    return int(height), int(width)


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation of a picture, 1 (upright) where it states none, or where its EXIF data are damaged."""
    try:
        return image.getexif().get(ORIENTATION_TAG, 1)
    except (OSError, *DECODING_ERRORS):
        return 1


def upright_size(image: Any, input_data_format: Any = None) -> tuple[int, int]:
    r"""Height and width of a picture after it was turned upright.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): One picture.
        input_data_format (`str`, *optional*): `"channels_first"` or `"channels_last"`; guessed where not given.
    Returns:
        `tuple[int, int]`."""
    if isinstance(image, Image.Image):
        is_lying = orientation_of(image) in LYING_ORIENTATIONS
        return image.size if is_lying else image.size[::-1]
    is_last = (input_data_format or guess_channels(image.shape)) == ChannelDimension.LAST
    return tuple(image.shape[:2] if is_last else image.shape[-2:])


def open_image(source: Any, timeout: float | None = None) -> Image.Image:
    r"""Open a picture file and decode it completely; animations give their first frame.

    Args:
        source (`str` or `os.PathLike`): A path, an `http://` or `https://` address, or base64 text.
        timeout (`float`, *optional*): Seconds to wait for a server.
    Returns:
        `PIL.Image.Image` in the file's own mode, not yet upright.
    Raises:
        OSError: If the file cannot be read or is cut off.
        ValueError: If the content is not a picture, is damaged, or is too large to decode safely."""
    name = os.fspath(source)
    if name.startswith(("http://", "https://")):
        request = urllib.request.Request(name, headers={"User-Agent": USER_AGENT})
        with urllib.request.urlopen(request, timeout=timeout) as response:
            content = io.BytesIO(response.read())
    elif os.path.exists(name) or not isinstance(source, str):
        content = name
    else:
        content = io.BytesIO(_decode_base64(name))
        name = "base64 text"
    try:
        with Image.open(content) as image:
            image.load()
            return image.copy() if getattr(image, "is_animated", False) else image
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{name}: not a picture in a format that Pillow can read") from error
    except OSError as error:
        if error.filename is not None:  # missing, a folder, not allowed: the message has the name already
            raise
        raise OSError(f"{name}: the picture cannot be decoded ({error})") from error
    except DECODING_ERRORS as error:
        raise ValueError(f"{name}: the picture cannot be decoded ({error})") from error


def _decode_base64(text: str) -> bytes:
    """Bytes of base64 text, with or without a `data:image/...;base64,` in front."""
    try:
        return base64.b64decode(text.split(",", 1)[1] if text.startswith("data:image/") else text, validate=True)
    except ValueError as error:
        shown = text if len(text) <= 100 else text[:100] + "..."
        raise FileNotFoundError(f"{shown}: no such file (nor an http address, nor base64 text)") from error


def load_rgb_image(source: Any, timeout: float | None = None) -> Image.Image:
    r"""Load a picture as the network sees it: upright, RGB, 8 bits, transparency over white. For drawing on it.

    Args:
        source (`str`, `os.PathLike` or `PIL.Image.Image`): What [`open_image`] takes, or an opened picture.
        timeout (`float`, *optional*): Seconds to wait for a server.
    Returns:
        `PIL.Image.Image` of mode RGB.
    Raises:
        OSError: If the file cannot be read or is cut off.
        ValueError: If the content is not a picture, is damaged, or is too large to decode safely."""
    image = source if isinstance(source, Image.Image) else open_image(source, timeout)
    array = rgb_array(image)
    return Image.fromarray(array if array.dtype == np.uint8 else np.rint(array).astype(np.uint8))


def rgb_array(image: Image.Image) -> np.ndarray:
    r"""Pixels of an upright RGB version of a picture, whatever its mode.

    Unlike `image.convert("RGB")`, 16-bit gray is scaled, not clipped to white, and transparency shows white instead of
    whatever colour hides under it (the rule of transformers' image processors).

    Args:
        image (`PIL.Image.Image`): Any mode; the current frame of an animation.
    Returns:
        `np.ndarray` of shape `(height, width, 3)`: uint8, or float32 in [0, 255] for pictures of more than 8 bits."""
    turn = TURNS.get(orientation_of(image))
    image = image if turn is None else image.transpose(turn)
    if image.mode.startswith("I") or image.mode == "F":
        gray = _deep_gray(np.asarray(image), image.mode)
        return np.repeat(gray[..., None], 3, axis=-1)  # (height, width, 3)
    if image.mode in ("RGBA", "LA", "La", "PA", "RGBa") or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _deep_gray(values: np.ndarray, mode: str) -> np.ndarray:
    """Bring gray values of more than 8 bits to float32 in [0, 255]."""
    values = values.astype(np.float32)
    if mode.startswith("I;16"):
        return values / SIXTEEN_BIT_STEP
    # Modes I and F do not say their range: 1, 8 or 16 bits, whichever is the smallest to hold the values.
    largest = values.max(initial=0)
    if mode == "F" and largest <= 1:
        values = values * 255
    elif largest > 255:
        values = values / SIXTEEN_BIT_STEP
    return values.clip(0, 255)


def channels_first(image: Any, do_convert_rgb: bool | None, input_data_format: Any = None) -> Any:
    r"""Bring one picture into the layout `(channels, height, width)`, uint8 or float32, as RGB if asked.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): One picture; gray ones may lack the channel axis.
        do_convert_rgb (`bool`, *optional*): Whether gray and transparent pictures become RGB.
        input_data_format (`str`, *optional*): `"channels_first"` or `"channels_last"`; guessed where not given.
    Returns:
        `np.ndarray` or `torch.Tensor` (for a tensor, on its device): Integer pictures are on the scale [0, 255].
    Raises:
        ValueError: If no axis can be the channels, or RGB is asked from a number of channels other than 1, 3, 4."""
    if isinstance(image, Image.Image):
        image = rgb_array(image) if do_convert_rgb else np.array(image)
        input_data_format = ChannelDimension.LAST
    if not isinstance(image, torch.Tensor):
        image = _to_tensor(image)
    if image.ndim == 2:
        image = image[None]
    elif (input_data_format or guess_channels(image.shape)) == ChannelDimension.LAST:
        image = image.movedim(-1, 0)
    image = eight_bit_scale(image)
    return to_rgb(image) if do_convert_rgb else image


def _to_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor of an array in any byte order, strides and write protection."""
    if array.dtype.byteorder not in ("=", "|"):
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def guess_channels(shape: Sequence[int]) -> ChannelDimension:
    r"""Say which end of a picture's shape is the channels.

    Where both ends could be, three channels are preferred to four and four to one, then the first axis; transformers
    always takes the first axis, and so reads an RGB picture of one row as a gray one.

    Raises:
        ValueError: If neither end is 1, 3 or 4."""
    if len(shape) == 3:
        for count in CHANNEL_COUNTS:
            if shape[0] == count:
                return ChannelDimension.FIRST
            if shape[-1] == count:
                return ChannelDimension.LAST
    raise ValueError(
        f"cannot tell the channels of a picture of shape {tuple(shape)}: give (height, width, 3) or (3, height, width)"
    )


def eight_bit_scale(image: torch.Tensor) -> torch.Tensor:
    """Bring integer pixels to the scale [0, 255]: uint8 stays, booleans and 16 bits are scaled, all others are cast."""
    if image.dtype == torch.uint8:
        return image
    scale = {torch.bool: 255.0, torch.uint16: 1 / SIXTEEN_BIT_STEP}.get(image.dtype, 1.0)
    image = image.to(torch.float32)
    return image if scale == 1.0 else image * scale


def to_rgb(image: torch.Tensor) -> torch.Tensor:
    r"""Turn gray or transparent pixels into RGB; transparency shows white.

    Args:
        image (`torch.Tensor` of shape `(1, 3 or 4, height, width)`): On the scale [0, 255]; floats up to 1 on [0, 1].
    Returns:
        `torch.Tensor` of shape `(3, height, width)`: Of the dtype of `image`, or float32 after blending.
    Raises:
        ValueError: If there is another number of channels."""
    if image.shape[0] == 3:
        return image
    if image.shape[0] == 1:
        return image.expand(3, -1, -1)
    if image.shape[0] != 4:
        raise ValueError(f"cannot make RGB of {image.shape[0]} channels: give 1 (gray), 3 (RGB) or 4 (RGB and alpha)")
    white = 1.0 if image.is_floating_point() and image.max() <= 1 else 255.0
    colour, alpha = image[:3].float(), image[3:].float() / white
    return colour * alpha + white * (1 - alpha)


class Pix2SeqImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    padding_value (`float`, *optional*, defaults to 0.3):
        Value of the padding at the bottom and right, on the scale of the network's input.
    """

    padding_value: float | None


class Pix2SeqImages:
    r"""What both backends share: the defaults, loading, checking, and the way back from boxes to pixels."""

    valid_kwargs = Pix2SeqImageProcessorKwargs
    model_input_names = ["pixel_values"]

    do_convert_rgb = True
    do_resize = True
    size = {"height": 640, "width": 640}
    default_to_square = True
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = False
    do_pad = True
    padding_value = 0.3

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        r"""Open what is a path, an address or base64 text, at any depth of lists; pictures pass through.

        Unlike the library's, this keeps the file's own mode, so that 16-bit and transparent files are converted well.

        Raises:
            TypeError: If an entry is neither a picture nor names one."""
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(entry) for entry in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, os.PathLike)):
            return open_image(image_url_or_urls)
        if is_valid_image(image_url_or_urls):
            return image_url_or_urls
        raise TypeError(f"a picture, a path or an address is needed, got {type(image_url_or_urls).__name__}")

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list:
        """One flat list of pictures from a picture, a batch, or (nested) lists of them; gray ones may lack channels."""
        images = self.fetch_images(images)
        if isinstance(images, list) and not images:
            raise ValueError("no pictures were given: the list is empty")
        return make_flat_list_of_images(_with_channel_axis(images), expected_ndims=expected_ndims)

    def _standardize_kwargs(self, **kwargs) -> dict:
        """The library's clean-up, and one clear line for sizes and steps that have no meaning here."""
        kwargs = super()._standardize_kwargs(**kwargs)
        for name in ("size", "pad_size"):
            size = kwargs.get(name)
            if size is not None and not (size.height and size.width and min(size.height, size.width) > 0):
                raise ValueError(f"{name} must have a positive height and width, got {dict(size)}")
        if kwargs.get("do_center_crop"):
            raise ValueError("do_center_crop: Pix2Seq pads pictures to `size` and never crops them")
        return kwargs

    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, target_sizes: Any = None
    ) -> list[dict[str, torch.Tensor]]:
        r"""Turn the output of [`Pix2SeqForObjectDetection`] into boxes in pixels of the original pictures.

        Args:
            outputs (`Pix2SeqObjectDetectionOutput` or `dict`):
                `scores` and `labels` of shape `(batch, num_slots)`, `pred_boxes` of shape `(batch, num_slots, 4)`:
                `ymin, xmin, ymax, xmax` in [0, 1] of the padded network input.
            threshold (`float`, *optional*, defaults to 0.5): Only objects of a higher score are kept.
            target_sizes (`torch.Tensor` of shape `(batch, 2)` or `list[tuple[int, int]]`, *optional*):
                Height and width of every original picture, upright. Without it boxes stay normalised by the padded
                network input.
        Returns:
            `list[dict[str, torch.Tensor]]`, per picture: `scores` `(num_objects,)`, `labels` `(num_objects,)` raw
            label ids, `boxes` `(num_objects, 4)` as `xmin, ymin, xmax, ymax`. Slots without a label are left out.
        Raises:
            ValueError: If there are not as many target sizes as pictures."""
        scores, labels, boxes_yxyx = outputs["scores"], outputs["labels"], outputs["pred_boxes"]
        if target_sizes is not None and len(target_sizes) != len(scores):
            raise ValueError(f"{len(target_sizes)} target_sizes were given for {len(scores)} pictures")
        results = []
        for index in range(len(scores)):
            keep = (labels[index] > 0) & (scores[index] > threshold)
            boxes = boxes_yxyx[index][keep]
            if target_sizes is None:
                boxes_xyxy = boxes[:, [1, 0, 3, 2]]
            else:
                input_size = self.size["height"], self.size["width"]
                boxes_xyxy = scale_boxes(boxes, pixel_size(target_sizes[index]), input_size)
            results.append({"scores": scores[index][keep], "labels": labels[index][keep], "boxes": boxes_xyxy})
        return results


def _with_channel_axis(images: Any) -> Any:
    """Give gray arrays of shape (height, width) a channel axis, at any depth of lists."""
    if isinstance(images, (list, tuple)):
        return [_with_channel_axis(image) for image in images]
    return images[None] if getattr(images, "ndim", 3) == 2 else images


def _padding_of(size: tuple[int, int], pad_size: SizeDict) -> tuple[int, int]:
    """Rows and columns to append; a picture that is too large is the caller's mistake."""
    rows, columns = pad_size.height - size[0], pad_size.width - size[1]
    if rows < 0 or columns < 0:
        raise ValueError(
            f"a picture of {size[0]} x {size[1]} pixels cannot be padded to {pad_size.height} x {pad_size.width}: "
            "use do_resize or a larger size"
        )
    return rows, columns


class Pix2SeqImageProcessor(Pix2SeqImages, TorchvisionBackend):
    r"""The reference's evaluation transform with torchvision, on the CPU or, with `device=`, on a GPU.

    Pixels become float32 in [0, 1], are resized in float (bilinear, antialiased) to fit into `size` with the aspect
    ratio kept, and padded with 0.3 at the bottom and right. No mean is subtracted.

    Args:
        size (`dict[str, int]`, *optional*, defaults to `{"height": 640, "width": 640}`): Network input in pixels.
        padding_value (`float`, *optional*, defaults to 0.3): Value of the padding.
        do_convert_rgb, do_resize, do_rescale, do_pad (`bool`, *optional*, defaults to `True`): Steps to do. Give
            float pictures in [0, 1] with `do_rescale=False`.
        resample, rescale_factor, do_normalize, image_mean, image_std, pad_size (*optional*): As in transformers."""

    def process_image(
        self, image: Any, do_convert_rgb: bool | None = None, input_data_format: Any = None, device=None, **kwargs
    ) -> torch.Tensor:
        """One picture as a tensor of shape (channels, height, width) on `device`, see [`channels_first`]."""
        image = channels_first(image, do_convert_rgb, input_data_format).contiguous()
        return image if device is None else image.to(device)

    def resize(self, image: torch.Tensor, size: SizeDict, resample: Any = None, **kwargs) -> torch.Tensor:
        r"""Resize float pictures, antialiased when they shrink.

        Args:
            image (`torch.FloatTensor` of shape `(batch, channels, height, width)`): Pictures of one size.
            size (`SizeDict`): `height` and `width` of the result.
            resample (`PILImageResampling`, *optional*): The filter, bilinear where not given.
        Returns:
            `torch.FloatTensor` of shape `(batch, channels, size.height, size.width)`."""
        if size.width > 1:
            return super().resize(image, size, resample, antialias=True)
        # torch 2.15 computes columns of one pixel width wrongly on the CPU, but not rows: lay the picture on its side,
        # one axis after the other.
        narrow = super().resize(image, SizeDict(height=image.shape[-2], width=1), resample, antialias=True)
        lying = SizeDict(height=1, width=size.height)
        return super().resize(narrow.mT.contiguous(), lying, resample, antialias=True).mT

    def _preprocess(
        self,
        images: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: Any,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        do_pad: bool,
        pad_size: SizeDict | None,
        padding_value: float,
        disable_grouping: bool | None,
        return_tensors: Any,
        **kwargs,
    ) -> BatchFeature:
        groups, order = group_images_by_shape(images, disable_grouping=disable_grouping)
        for shape, group in groups.items():
            # Source: the reference converts to float32 first and resizes floats; rounding to 8 bits in between differs.
            group = group.to(torch.float32)
            if do_rescale:
                group = group * rescale_factor
            if do_normalize:
                group = self.normalize(group, image_mean, image_std)
            if do_resize:
                height, width = resized_size(group.shape[-2:], (size.height, size.width))
                group = self.resize(group, SizeDict(height=height, width=width), resample)
            if do_pad:
                rows, columns = _padding_of(tuple(group.shape[-2:]), pad_size or size)
                # Shift, pad with zeros, shift back: pixels carry the rounding that the reference's have.
                group = torch.nn.functional.pad(group - padding_value, (0, columns, 0, rows)) + padding_value
            groups[shape] = group
        return BatchFeature({"pixel_values": reorder_images(groups, order)}, tensor_type=return_tensors)


class Pix2SeqImageProcessorPil(Pix2SeqImages, PilBackend):
    r"""[`Pix2SeqImageProcessor`] with Pillow and numpy, where torchvision is missing; equal to about 1e-6."""

    def process_image(
        self, image: Any, do_convert_rgb: bool | None = None, input_data_format: Any = None, **kwargs
    ) -> np.ndarray:
        """One picture as an array of shape (channels, height, width), see [`channels_first`]."""
        return channels_first(image, do_convert_rgb, input_data_format).detach().cpu().numpy()

    def resize(self, image: np.ndarray, size: SizeDict, resample: Any = None, **kwargs) -> np.ndarray:
        r"""Resize a float picture, channel by channel, in Pillow's float mode (antialiased when it shrinks).

        Args:
            image (`np.ndarray` of shape `(channels, height, width)`): float32.
            size (`SizeDict`): `height` and `width` of the result.
            resample (`PILImageResampling`, *optional*): The filter, bilinear where not given.
        Returns:
            `np.ndarray` of shape `(channels, size.height, size.width)`: float32."""
        resample = PILImageResampling.BILINEAR if resample is None else PILImageResampling(resample)
        if image.shape[1:] == (size.height, size.width):
            return image
        channels = [Image.fromarray(channel).resize((size.width, size.height), resample) for channel in image]
        return np.stack([np.asarray(channel) for channel in channels])

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_resize: bool,
        size: SizeDict,
        resample: Any,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        do_pad: bool,
        pad_size: SizeDict | None,
        padding_value: float,
        return_tensors: Any,
        **kwargs,
    ) -> BatchFeature:
        processed = []
        for image in images:
            image = image.astype(np.float32)
            if do_rescale:
                image = image * np.float32(rescale_factor)
            if do_normalize:
                image = self.normalize(image, image_mean, image_std).astype(np.float32)
            if do_resize:
                height, width = resized_size(image.shape[1:], (size.height, size.width))
                image = self.resize(image, SizeDict(height=height, width=width), resample)
            if do_pad:
                rows, columns = _padding_of(image.shape[1:], pad_size or size)
                shift = np.float32(padding_value)
                image = np.pad(image - shift, ((0, 0), (0, rows), (0, columns))) + shift
            processed.append(image)
        return BatchFeature({"pixel_values": processed}, tensor_type=return_tensors)


def best_image_processor(**kwargs) -> Pix2SeqImages:
    """The torchvision image processor with the given options, or the Pillow one where torchvision is missing."""
    return Pix2SeqImageProcessor(**kwargs) if is_torchvision_available() else Pix2SeqImageProcessorPil(**kwargs)


__all__ = ["Pix2SeqImageProcessor", "Pix2SeqImageProcessorPil"]
