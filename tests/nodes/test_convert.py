"""What ComfyUI hands over becomes what the library takes, also where it is poor; what cannot be used is refused."""

import numpy as np
import pytest
import torch
from media.videos import write_film


@pytest.fixture
def convert(pack):
    return pack.nodes.convert


@pytest.fixture
def errors(pack):
    return pack.liveavatar.errors


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("batch", [1, 3])
def test_pictures_of_any_batch_and_channels(convert, channels, batch):
    image = torch.rand(batch, 20, 30, channels)
    picture = convert.image_array(image)
    assert picture.shape == (20, 30, 3)
    assert picture.dtype == np.uint8
    first = image[0, ..., :3].expand(-1, -1, 3) if channels == 1 else image[0, ..., :3]
    if channels == 4:
        first = first * image[0, ..., 3:] + 1 - image[0, ..., 3:]
    np.testing.assert_allclose(picture / 255, first.numpy(), atol=0.5 / 255 + 1e-6)


def test_pictures_beyond_white_are_clipped(convert):
    assert convert.image_array(torch.full((1, 4, 4, 3), 1.7)).max() == 255
    assert convert.image_array(torch.full((1, 4, 4, 3), -0.2)).max() == 0


def test_what_the_mask_of_load_image_calls_transparent_becomes_white(convert):
    hidden = torch.zeros(2, 6, 8, 3)
    mask = torch.zeros(2, 6, 8)
    mask[0, :, :4] = 1
    picture = convert.image_array(hidden, mask)
    assert (picture[:, :4] == 255).all() and (picture[:, 4:] == 0).all()
    np.testing.assert_array_equal(convert.image_array(hidden, mask[0]), picture)
    np.testing.assert_array_equal(convert.image_array(hidden, mask[:, ::2, ::2])[:, :2], picture[:, :2])
    assert (convert.image_array(hidden, torch.zeros(1, 64, 64)) == 0).all()  # that of an opaque picture


@pytest.mark.parametrize("mask", [3, torch.rand(1, 4, 4, 3), torch.rand(0, 4, 4), torch.full((4, 4), float("nan"))])
def test_what_is_no_mask_is_refused(convert, errors, mask):
    with pytest.raises(errors.ImageError, match="mask"):
        convert.image_array(torch.rand(1, 4, 4, 3), mask)


@pytest.mark.parametrize("image", [None, torch.rand(4, 4, 3), torch.rand(0, 4, 4, 3), torch.rand(1, 4, 4, 5)])
def test_what_is_no_picture_is_refused(convert, errors, image):
    with pytest.raises(errors.ImageError, match="Load Image"):
        convert.image_array(image)


class Video:
    """VIDEO of core, trimmed."""

    def __init__(self, path, start=0.0, length=0.0):
        self.path, self.trim = path, (start, length)

    def get_stream_source(self):
        return str(self.path)

    def get_active_trim_window(self):
        return self.trim

    def save_to(self, path):
        write_film(path, 10, None)


def test_a_pose_is_a_batch_of_pictures_or_a_video(convert, errors, tmp_path):
    batch = torch.rand(3, 20, 30, 3)
    pose = convert.pose_source(batch)
    assert pose.seconds == 3 / 25
    for shown, image in zip(pose.pictures(), batch, strict=True):
        np.testing.assert_array_equal(shown, convert.image_array(image[None]))
    write_film(tmp_path / "pose.mp4", 24, None)
    assert sum(1 for _ in convert.pose_source(Video(tmp_path / "pose.mp4")).pictures()) == 24
    assert sum(1 for _ in convert.pose_source(Video(tmp_path / "pose.mp4", 0.4, 0.2)).pictures()) == 5
    assert convert.pose_source(None) is None
    with pytest.raises(errors.PoseError, match="dict"):
        convert.pose_source({})
    with pytest.raises(errors.PoseError, match="holds no picture"):
        convert.pose_source(torch.rand(0, 20, 30, 3))
    with pytest.raises(errors.PoseError, match="There is no pose video"):
        convert.pose_source(Video(tmp_path / "none.mp4"))


def test_the_end_of_a_video_is_read_from_its_file_or_of_its_trimmed_part(convert, errors, tmp_path):
    write_film(tmp_path / "film.mp4", 24, None)
    folder = tmp_path / "parts"
    folder.mkdir()
    whole = convert.video_tail(Video(tmp_path / "film.mp4"), folder)
    part = convert.video_tail(Video(tmp_path / "film.mp4", 0.0, 0.4), folder)
    assert whole.path.name == "film.mp4" and part.path.name == "the connected video.mp4"
    assert whole.frames.shape == part.frames.shape and not np.array_equal(whole.frames[-1], part.frames[-1])
    assert not list(folder.iterdir())
    with pytest.raises(errors.StateError, match="dict"):
        convert.video_tail({}, tmp_path)


def test_nothing_on_an_input_is_told_as_that(convert, errors):
    with pytest.raises(errors.AudioError, match="a video without sound has none"):
        convert.audio_clip(None)
    with pytest.raises(errors.ImageError, match="No picture came"):
        convert.image_array(None)


def test_a_picture_with_nan_is_refused(convert, errors):
    with pytest.raises(errors.ImageError, match="not numbers"):
        convert.image_array(torch.full((1, 4, 4, 3), float("nan")))


@pytest.mark.parametrize(("batch", "channels", "rate"), [(1, 1, 44_100), (1, 2, 48_000), (1, 6, 16_000)])
def test_sound_of_any_batch_channels_and_rate(convert, batch, channels, rate):
    waveform = torch.rand(batch, channels, 100) - 0.5
    sound = convert.audio_clip({"waveform": waveform, "sample_rate": rate})
    assert (sound.rate, sound.samples.shape) == (rate, (100, channels))
    np.testing.assert_array_equal(sound.samples, waveform[0].T.numpy())


def test_a_lazy_mapping_is_sound_too(convert):
    from collections.abc import Mapping

    class Lazy(Mapping):
        def __getitem__(self, key):
            return {"waveform": torch.zeros(1, 1, 50), "sample_rate": 16_000}[key]

        def __iter__(self):
            return iter(("waveform", "sample_rate"))

        def __len__(self):
            return 2

    assert convert.audio_clip(Lazy()).seconds == pytest.approx(50 / 16_000)


@pytest.mark.parametrize("audio", [None, [], {"sample_rate": 3}, {"waveform": torch.zeros(5), "sample_rate": 16_000}])
def test_what_is_no_sound_is_refused(convert, errors, audio):
    with pytest.raises(errors.AudioError):
        convert.audio_clip(audio)


def test_sound_without_samples_or_with_nan_is_refused(convert, errors):
    for waveform in (torch.zeros(1, 1, 0), torch.full((1, 1, 9), float("inf"))):
        with pytest.raises(errors.AudioError):
            convert.audio_clip({"waveform": waveform, "sample_rate": 16_000})


@pytest.mark.parametrize("kind", ["tensor", "numpy"])
def test_integer_samples_are_scaled(convert, kind):
    for dtype, full in ((torch.int16, 2**15), (torch.int32, 2**31)):
        waveform = torch.tensor([[[0, full // 2, -full]]], dtype=dtype)
        given = waveform if kind == "tensor" else waveform.numpy()
        sound = convert.audio_clip({"waveform": given, "sample_rate": 16_000})
        np.testing.assert_allclose(sound.samples[:, 0], [0, 0.5, -1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sound_of_any_float_is_taken(convert, dtype):
    waveform = torch.full((1, 2, 100), 0.25, dtype=dtype, requires_grad=True)
    assert (convert.audio_clip({"waveform": waveform, "sample_rate": torch.tensor(16_000)}).samples == 0.25).all()


def test_a_batch_of_sounds_is_refused_with_the_way_to_split_it(convert, errors):
    waveform = torch.stack([torch.full((2, 100), 0.1 * n) for n in (1, 2, 3)])
    batch = {"waveform": waveform, "sample_rate": 16_000, "name": "three"}
    with pytest.raises(errors.AudioError, match=r"holds 3 sounds.*Audio Batch to List \(Live Avatar\)"):
        convert.audio_clip(batch)
    split = convert.split_audio(batch)
    for audio, level in zip(split, (0.1, 0.2, 0.3), strict=True):
        clip = convert.audio_clip(audio)
        assert (clip.rate, clip.samples.shape, audio["name"]) == (16_000, (100, 2), "three")
        np.testing.assert_allclose(clip.samples, level, rtol=1e-6)
    with pytest.raises(errors.AudioError, match="no sample_rate"):
        convert.split_audio({"waveform": waveform})


UNUSABLE = [
    ({"waveform": torch.zeros(1, 1, 50)}, "no sample_rate"),
    ({"waveform": torch.zeros(1, 1, 50), "sample_rate": None}, "no sample_rate"),
    ({"waveform": torch.zeros(1, 1, 50), "sample_rate": "fast"}, "rate of fast"),
    ({"waveform": torch.zeros(1, 1, 50), "sample_rate": 44_100.5}, "rate of 44100.5"),
    ({"waveform": torch.zeros(1, 1, 50), "sample_rate": 0}, "rate of 0"),
    ({"waveform": [[[0.0, 0.1]]], "sample_rate": 16_000}, "waveform is list"),
    ({"waveform": None, "sample_rate": 16_000}, "waveform is NoneType"),
    ({"waveform": torch.zeros(2, 50), "sample_rate": 16_000}, r"\[2, 50\], not \[1, channels"),
    ({"waveform": torch.zeros(1, 1, 1, 50), "sample_rate": 16_000}, "not"),
    ({"waveform": torch.zeros(0, 1, 50), "sample_rate": 16_000}, "not"),
    ({"waveform": torch.zeros(1, 0, 50), "sample_rate": 16_000}, "not"),
    ({"waveform": torch.zeros(1, 1, 0), "sample_rate": 16_000}, "0 s long"),
    ({"waveform": torch.zeros(1, 4000, 1), "sample_rate": 16_000}, "Transpose"),
    ({"waveform": torch.zeros(1, 1, 50, dtype=torch.int64), "sample_rate": 16_000}, "no known full scale"),
    ({"waveform": torch.full((1, 1, 50), 20_000.0), "sample_rate": 16_000}, "full scale is 1"),
]


@pytest.mark.parametrize(("audio", "told"), UNUSABLE)
def test_unusable_sound_is_refused_in_a_sentence(convert, errors, audio, told):
    with pytest.raises(errors.AudioError, match=told):
        convert.audio_clip(audio)


RANGES = [
    (255 * torch.rand(1, 4, 4, 3), "Divide it by 255"),
    (torch.full((1, 4, 4, 3), 200, dtype=torch.uint8), "Divide it by 255"),
    (2 * torch.rand(1, 4, 4, 3) - 1.01, "Bring it to 0..1"),
]


@pytest.mark.parametrize(("image", "nearest"), RANGES)
def test_a_picture_of_another_range_is_refused(convert, errors, image, nearest):
    with pytest.raises(errors.ImageError, match=r"not 0\.\.1") as error:
        convert.image_array(image)
    assert nearest in error.value.nearest


def test_of_a_batch_of_pictures_the_first_is_told(convert):
    assert convert.image_notes(torch.rand(3, 4, 4, 3)) == ("the first of 3 connected pictures is used",)
    assert convert.image_notes(torch.rand(1, 4, 4, 3)) == ()


def test_an_encoded_prompt_that_is_too_long_is_told(convert, pack):
    config = pack.liveavatar.config.MINI
    padded = torch.zeros(1, config.text_len + 30, config.text_dim)
    padded[:, :5] = 1
    assert convert.prompt_notes([[padded, {}]], config) == ()
    padded[:, : config.text_len + 7] = 1
    (note,) = convert.prompt_notes([[padded, {}]], config)
    assert f"{config.text_len + 7} tokens" in note and f"reads {config.text_len}" in note
    assert "the first of 2" in convert.prompt_notes([[padded, {}]] * 2, config)[0]


def test_conditioning_is_cut_to_what_the_model_reads(convert, pack):
    config = pack.liveavatar.config.MINI
    rows = torch.randn(1, config.text_len + 7, config.text_dim, dtype=torch.float16)
    context = convert.prompt_embedding([[rows, {"pooled_output": None}], [rows * 2, {}]], config)
    assert context.dtype == torch.float32
    torch.testing.assert_close(context, rows[0, : config.text_len].float())


@pytest.mark.parametrize("positive", [None, [], [[]], 7, [["words", {}]]])
def test_what_is_no_conditioning_is_refused(convert, errors, pack, positive):
    with pytest.raises(errors.RequestError, match="CLIP Text Encode"):
        convert.prompt_embedding(positive, pack.liveavatar.config.MINI)


def test_the_states_of_all_layers_are_taken(convert, errors):
    layers = tuple(torch.randn(1, 40, 8) for _ in range(3))
    states = convert.audio_states({"encoded_audio": layers[-1], "encoded_audio_all_layers": layers, "audio_samples": 9})
    assert [tuple(s.shape) for s in states] == [(40, 8)] * 3
    for wrong in (None, {"encoded_audio": layers[0]}, {"encoded_audio_all_layers": []}):
        with pytest.raises(errors.AudioError, match="all layers"):
            convert.audio_states(wrong)


def test_an_encoder_of_another_kind_is_refused(convert, errors):
    with pytest.raises(errors.AudioError, match="wav2vec2"):
        convert.core_audio_encoder(object())
