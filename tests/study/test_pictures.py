import numpy as np
import pytest
from helpers import GELU, write_arm, write_run
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from study.report import pictures
from study.report.compare import compare
from study.report.drawing import DASHES, PALETTE, SYMBOLS
from study.report.pictures import apart, write_picture

COLORS = [np.array(to_rgb(color)) for color in PALETTE["light"]]
WHITE = np.ones(3)


def curve(x, y, color=0, end="a", **changes):
    """A trace as `figures` makes them."""
    meta = {"arm": end, "kind": "validation", "color": color, "end": end}
    marker = {"symbol": "circle", "size": 20}
    return {"type": "scatter", "mode": "markers", "name": end, "x": x, "y": y, "marker": marker, "meta": meta} | changes


def figure(traces, x=(0, 10), y=(0, 10), **layout):
    plain = {"title": {"text": ""}, "zeroline": False, "showgrid": False}
    axes = {"xaxis": plain | {"range": x}, "yaxis": plain | {"range": y}}
    return {"data": traces, "layout": {name: axis | layout.pop(name, {}) for name, axis in axes.items()} | layout}


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Return a function from a figure to a function from a place of its axes, (0, 0) to (1, 1), to the colour there."""
    frames = []
    monkeypatch.setattr(pictures, "_name", lambda axes, _: frames.append(axes.get_window_extent()))

    def drawn(content):
        write_picture(content, tmp_path / "figure.png", "title")
        pixels, frame = imread(tmp_path / "figure.png")[::-1, :, :3], frames.pop()
        return lambda x, y: pixels[round(frame.y0 + y * frame.height), round(frame.x0 + x * frame.width)]

    return drawn


def test_points_stand_where_they_belong_in_their_colours(draw):
    color = draw(figure([curve([2, 5], [5, 5], 1), curve([5], [5], 3)]))
    assert color(0.2, 0.5) == pytest.approx(COLORS[1], abs=0.01)
    assert color(0.5, 0.5) == pytest.approx(COLORS[3], abs=0.01)  # the later one lies on top
    assert color(0.8, 0.5) == pytest.approx(WHITE)


def test_a_range_on_a_log_axis_is_in_powers_of_ten(draw):
    axis = {"type": "log", "tickvals": [10, 100], "ticktext": ["a &lt; b", "100"]}
    color = draw(figure([curve([10, 1000], [5, 5])], x=(0, 4), xaxis=axis))
    assert color(0.25, 0.5) == pytest.approx(COLORS[0], abs=0.01)
    assert color(0.75, 0.5) == pytest.approx(COLORS[0], abs=0.01)
    assert color(0.5, 0.5) == pytest.approx(WHITE)


def test_bands_shades_intervals_and_rings(draw):
    band = curve([0, 4, 4, 0], [4, 4, 0, 0], 2, mode="lines", fill="toself", line={"width": 0})
    interval = curve([5], [8], 4, error_x={"array": [2], "thickness": 8, "width": 5})
    ring = curve([8], [2], 1, marker={"symbol": "circle-open", "size": 40, "line": {"width": 8}})
    shades = [
        {"xref": "paper", "x0": 0, "x1": 1, "y0": 5, "y1": 6},
        {"yref": "paper", "y0": 0, "y1": 1, "x0": 9, "x1": 10},
    ]
    color = draw(figure([band, interval, ring], shapes=shades))
    assert color(0.2, 0.2) == pytest.approx(0.16 * COLORS[2] + 0.84 * WHITE, abs=0.01)
    assert color(0.35, 0.8) == pytest.approx(COLORS[4], abs=0.01)
    assert color(0.75, 0.8) == pytest.approx(WHITE)
    assert color(0.8, 0.2) == pytest.approx(WHITE)  # the middle of a ring is empty
    shade = 0.16 * np.array(to_rgb(pictures.MUTED)) + 0.84 * WHITE
    assert [*map(pytest.approx(shade, abs=0.01).__eq__, (color(0.2, 0.55), color(0.95, 0.8)))] == [True, True]


def test_another_type_of_trace_is_a_function_and_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(pictures.DRAW, "heatmap", lambda axes, trace: axes.pcolormesh(trace["z"], cmap="gray"))
    write_picture(figure([{"type": "heatmap", "z": [[0, 1], [2, 3]]}], (0, 2), (0, 2)), tmp_path / "it.png", "map")
    assert [*imread(tmp_path / "it.png")[[-200, 200], [400, 1400], 0]] == [0, 1]


def test_every_look_of_an_arm_can_be_drawn(draw):
    looks = [(dash, SYMBOLS[0]) for dash in DASHES] + [(DASHES[0], symbol) for symbol in SYMBOLS]
    for dash, symbol in looks:
        marker = {"symbol": symbol, "size": 20, "maxdisplayed": 24}
        line = curve([*range(100)], [5] * 100, mode="lines+markers", line={"dash": dash, "width": 2}, marker=marker)
        assert draw(figure([line], x=(0, 99)))(0, 0.5) == pytest.approx(COLORS[0], abs=0.01)


@pytest.mark.parametrize("name", ["$x_$", "\\", "日本語", "&lt;b&gt;", "_hidden"])
def test_any_name_can_be_written(tmp_path, name):
    write_picture(figure([curve([1], [1], end=name)]), tmp_path / "it.png", name)
    rates = curve([1], [1], end=name) | {"meta": {"arm": name, "kind": "rate", "color": 0}}
    write_picture(figure([rates]), tmp_path / "it.png", name)


@pytest.mark.parametrize("many", [3, 30])
def test_each_curve_in_view_is_named_and_no_two_names_overlap(many):
    axes = Figure(figsize=(8, 8), dpi=200).add_subplot()
    axes.set(xlim=(0, 10), ylim=(0, 10))
    curves = [curve([0, 10], [0, 5 + i / 100], end=f"&lt;{i}") for i in range(many)]
    pictures._name(axes, [*curves, curve([0, 10], [0, 11], end="out of view")])
    assert [text.get_text() for text in axes.texts] == [f"<{i}" for i in range(many)]
    at = [axes.transData.transform(t.xy)[1] + t.xyann[1] * 200 / 72 for t in axes.texts]  # pyright: ignore
    assert min(np.diff(at)) >= 29.99  # pixels, two for one of the page


def test_a_legend_names_each_arm_once_and_neither_interval_nor_ring(tmp_path, monkeypatch):
    legends = []
    monkeypatch.setattr(Figure, "legend", lambda _, handles, names, **__: legends.append(names))
    trace = curve([2, 5], [5, 5], error_y={"array": [1, 1], "thickness": 1, "width": 4})
    trace |= {"meta": {"arm": "a", "kind": "", "color": 0}}
    ring = curve([2], [5], marker={"symbol": "circle-open", "size": 15}) | {"name": "", "meta": trace["meta"]}
    write_picture(figure([trace, ring]), tmp_path / "it.png", "title")
    assert legends == [["a"]]


def test_a_ring_out_of_view_is_left_out_and_one_on_the_edge_is_whole(draw):
    ring = {
        "mode": "markers",
        "marker": {"symbol": "circle-open", "size": 40, "line": {"width": 12}},
        "cliponaxis": False,
    }
    line = curve([0, 10], [5, 5], mode="lines", color=1)
    at = draw(figure([line, curve([5], [10], **ring), curve([5], [1000], **ring)]))
    assert at(0.5, 0.99) == pytest.approx(WHITE, abs=0.01)  # inside the ring
    assert at(0.5, 0.5) == pytest.approx(COLORS[1], abs=0.01)  # the axes have their size


def test_names_are_pushed_apart_no_further_than_needed():
    assert [*apart([10, 10, 50], 4, 0, 100)] == [8, 12, 50]
    assert [*apart([1, 2, 3], 4, 0, 100)] == [0, 4, 8]
    assert [*apart([99, 100], 4, 0, 100)] == [96, 100]
    assert [*apart([], 4, 0, 100)] == []


def test_comparing_draws_each_figure_of_the_report(tmp_path):
    write_arm(tmp_path, "gelu", GELU, lr=0.004)
    write_arm(tmp_path, "relu", [loss + 0.25 for loss in GELU], lr=0.004)
    compare([tmp_path])
    assert sorted(p.stem for p in tmp_path.glob("*.png")) == ["difference", "final", "loss"]
    for lr, loss in {0.002: 5.0, 0.004: 4.5, 0.008: 4.75}.items():
        write_run(tmp_path / "tune" / f"gelu-{lr}", "gelu", loss, tokens=500, lr=lr, seed=1000)
    compare([tmp_path])
    sizes = {p.stem: imread(p).shape[:2] for p in tmp_path.glob("*.png")}
    assert sizes == {"loss": (940, 1600), "difference": (940, 1600), "final": (276, 1600), "rates": (940, 1600)}


@pytest.mark.parametrize("kind", ["validation", "rate"])
def test_a_hundred_arms_make_the_picture_as_high_as_their_names(tmp_path, kind):
    traces = [curve([1], [i / 10], i % 8, str(i)) for i in range(100)]
    for trace in traces:
        trace["meta"]["kind"] = kind
    write_picture(figure(traces), tmp_path / "it.png", "many")
    pixels = imread(tmp_path / "it.png")[:, :, :3]
    assert len(pixels) > 2 * 100 * pictures.GAP
    for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
        assert edge.min() == 1  # nothing is cut
