from pathlib import Path

from reporting.page import PIECES, Section, write_page
from reporting.pictures import draw_lines, picture, short


def draw(axes):
    draw_lines(axes, {"a": ([0, 1], [0, 1])}, "epoch")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    return [(0, 0, "lower left"), (1, 1, "<upper right>")]


def dots():
    return picture("dots", "Dots & lines", "How to read <it>.", draw, legend=0)


def test_page_holds_everything_and_its_pictures_lie_beside_it(tmp_path: Path):
    file = tmp_path / "page.html"
    pictures, run = tmp_path / "page_pictures", tmp_path / "page"
    pictures.mkdir()
    (pictures / "of_an_earlier_page.png").write_bytes(b"")
    run.mkdir()
    (run / "results.json").write_text("{}")
    drawn = dots()
    sections = [
        Section("First part", "Read & see.", [PIECES.table(["", "x"], [["a", "1"], ["b", "2"]], marked=1), [drawn]])
    ]
    write_page(file, "A < B", "of a test", sections)
    text = file.read_text()
    assert [path.name for path in pictures.iterdir()] == ["dots.png"]
    assert (pictures / "dots.png").read_bytes() == drawn.png
    assert [path.name for path in run.iterdir()] == ["results.json"]  # a report named after a run leaves it alone
    for part in ("<h1>A &lt; B</h1>", "Read &amp; see.", "href='#first-part'", "id='first-part'", "read &lt;it&gt;."):
        assert part in text
    assert "<tr class='marked'><th scope='row'>b</th><td>2</td></tr>" in text
    assert "<script" not in text


def test_tooltips_lie_where_the_points_are():
    drawn = dots()
    assert drawn.size == (810, 495)
    left, right = drawn.tooltips
    assert (left.text, right.text) == ("lower left", "<upper right>")
    assert 0 < left.x < 0.2 < 0.9 < right.x <= 1  # x from the left
    assert 0 < right.y < 0.2 < 0.8 < left.y < 1  # y from above


def test_short():
    assert (short("abcdef", 6), short("abc defg", 5)) == ("abcdef", "abc…")
