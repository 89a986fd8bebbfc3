"""Pictures that a page shows in their own size: words large enough, nothing over anything else."""

import numpy as np
import PIL.Image
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from experiments.report import page, pictures

GREY = np.full((8, 8, 3), 100, np.uint8)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, instead of files."""
    saved = []
    monkeypatch.setattr(pictures, "save", lambda figure, path, caption: saved.append(figure))
    return saved


def laid_out(figure):
    """A renderer in which the figure's parts have their places."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def are_apart(texts, renderer):
    """Whether no two of the texts lie on each other."""
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    return not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def redness(picture_YXC):
    return picture_YXC[..., 0].astype(int) - picture_YXC[..., 2]


def test_strong_negative_relevance_does_not_hide_the_positive():
    map_YX = np.zeros((8, 8))
    map_YX[0, :4], map_YX[4] = 1.0, -1_000.0
    heat = redness(pictures.heat_over(GREY, map_YX))
    assert heat[0, :4].min() > 150 and heat[4].max() < -100 and not heat[2].any()
    half = redness(pictures.heat_over(GREY, np.where(map_YX > 0, 0.5, 0) + (np.arange(64) == 63).reshape(8, 8)))
    assert 0 < half[0, 0] < half[7, 7]


@pytest.mark.parametrize("most", [0.0, 1e-9])
def test_a_map_of_next_to_no_positive_part_is_not_made_of_its_noise(most):
    map_YX = np.full((8, 8), most)
    map_YX[4] = -1.0
    heat = redness(pictures.heat_over(GREY, map_YX))
    assert heat[4].max() < -100 and abs(heat[0]).max() <= 1
    assert not redness(pictures.heat_over(GREY, np.zeros((8, 8)))).any()


@pytest.mark.parametrize("num", [1, 6, 7, 10, 12])
def test_a_sheet_is_as_wide_as_the_page_shows_and_its_words_lie_apart(tmp_path, figures, num):
    long = "integrated_gradients: for\na class of a rather long name 0.71"
    pictures.contact_sheet(tmp_path / "a.png", [[(GREY, f"{i} {long}") for i in range(num)]] * 2)
    (figure,) = figures
    assert figure.get_size_inches()[0] <= pictures.WIDEST
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 2 * num
    assert {axes.title.get_fontsize() for axes in shown} == {pictures.TITLE} and pictures.TITLE * 100 / 72 > 12
    assert are_apart([axes.title for axes in shown], laid_out(figure))
    first = min(axes.get_position().x0 for axes in shown)
    assert sum(axes.get_position().x0 < first + 0.01 for axes in shown) == 2  # a row that goes on begins further in


@pytest.mark.parametrize("num", [2, 8, 12, 29, 60, 100])
def test_names_and_numbers_of_a_matrix_lie_apart(tmp_path, figures, num):
    values = np.geomspace(1e-4, 9_999, num * num).reshape(num, num)
    values[0, 1] = np.nan
    pictures.matrix(tmp_path / "a.png", values, [f"hand-coloured engraving on paper {i}" for i in range(num)])
    (figure,) = figures
    assert max(figure.get_size_inches()) <= pictures.WIDEST
    renderer, axes = laid_out(figure), figure.axes[0]
    for texts in (axes.get_xticklabels(), axes.get_yticklabels(), axes.texts):
        assert are_apart(texts, renderer)
    assert len(axes.get_yticklabels()) >= min(num, 40) and len(axes.texts) == (num * num - 1 if num <= 12 else 0)


@pytest.mark.parametrize(
    ("value", "is_whole", "words"),
    [(0.00081, False, "0.00"), (4.4983, False, "4.50"), (12.34, False, "12.3"), (250.4, False, "250")]
    + [(40, True, "40"), (9_999, True, "9999"), (123_456, True, "1e5")],
)
def test_numbers_of_a_matrix_are_short(value, is_whole, words):
    assert pictures._short(value, is_whole=is_whole) == words


def test_boxes_of_many_groups_stay_as_wide_as_the_page_shows(tmp_path):
    groups = {f"method {i}": {kind: np.arange(9.0) for kind in "abc"} for i in range(12)}
    pictures.boxes(tmp_path / "a.png", groups)
    assert page.png_width(tmp_path / "a.png") <= pictures.WIDEST * pictures.DPI
    assert PIL.Image.open(tmp_path / "a.png").width > page.HALF_PAGE
