"""report.html in a headless Chromium: no console error, no overflow at 360 and 1280 pixels, every box opened."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cyclical_lr.report import page
from cyclical_lr.report.collect import collect
from cyclical_lr.report.report import make_report

REPOSITORY = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (360, 1280)

# Frames, because a window is never narrower than 500 pixels. What they hold is measured with every <details> open.
FRAMES = """<!doctype html><title>waiting</title><body>%s<script>
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
const measure = async frame => {
  const page = frame.contentDocument, root = page.documentElement;
  for (const box of page.querySelectorAll("details")) box.open = true;
  const button = page.querySelector(".command button");
  button?.click();
  await wait(300);
  const right = root.clientWidth + 0.5;
  const boxed = element => element.closest(".scroll, .picture, pre") !== null;
  const out = [...page.body.querySelectorAll("*")].filter(e => !boxed(e) && e.getBoundingClientRect().right > right);
  return {
    title: page.title, width: frame.contentWindow.innerWidth, overflow: root.scrollWidth - root.clientWidth,
    sticking_out: out.slice(0, 3).map(e => e.outerHTML.slice(0, 80)), button: button?.textContent ?? null,
    images: [...page.images].map(image => image.naturalWidth),
  };
};
addEventListener("load", async () => {
  await wait(500);
  const found = await Promise.all([...document.querySelectorAll("iframe")].map(measure));
  const text = document.createElement("pre");
  text.id = "measured";
  text.textContent = JSON.stringify(found);
  document.body.append(text);
});
</script>"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """`browse(html)`: what was measured at each width, and what the console said."""
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        pytest.skip(f"needs a browser: none of {', '.join(NAMES)} is installed (apt-get install chromium)")

    def run(html: str) -> tuple[list[dict], list[str]]:
        folder = tmp_path_factory.mktemp("browser")
        (folder / "page.html").write_text(html, encoding="utf-8")
        frames = (f'<iframe src="page.html" width="{width}" height="800" frameborder="0"></iframe>' for width in WIDTHS)
        (folder / "frames.html").write_text(FRAMES % "".join(frames), encoding="utf-8")
        flags = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr"),
            *(f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files", "--virtual-time-budget=20000"),
        ]
        command = [chromium, *flags, "--dump-dom", (folder / "frames.html").as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=240)
        measured = re.search(r'<pre id="measured">(.*?)</pre>', shown.stdout, re.DOTALL)
        assert measured, f"nothing was measured:\n{shown.stderr[-2000:]}"
        text = measured[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        return json.loads(text), re.findall(r".*CONSOLE.*", shown.stderr)

    return run


def test_the_committed_page_fits_a_phone_and_a_desk_without_an_error(browse):
    measured, console = browse((REPOSITORY / "results" / "report.html").read_text(encoding="utf-8"))
    assert console == []
    assert [each["width"] for each in measured] == list(WIDTHS)
    for each in measured:
        assert each["title"] == "Cyclical learning rates, replicated"
        assert each["overflow"] <= 0 and each["sticking_out"] == [], each
        assert each["images"] and all(each["images"])
        assert each["button"] in ("Copied", "Selected")


def test_what_is_looked_for_would_be_found(browse):
    """The same measurement on a page that is too wide and has an error."""
    wide = '<!doctype html><title>x</title><p style="width:900px">wide</p><script>throw new Error("here")</script>'
    (phone, desk), console = browse(wide)
    assert phone["overflow"] > 0 and "900px" in phone["sticking_out"][0]
    assert desk["overflow"] <= 0 and desk["sticking_out"] == []
    assert len(console) == len(WIDTHS) and all("here" in line for line in console)


def test_long_names_and_messages_widen_nothing(browse, paper, tmp_path, add_run):
    long = "cifar10_tri2[" + ",".join(f"data.something_long_{number}=0.00392156862745098" for number in range(8)) + "]"
    add_run(long, 0, {0: 10.0, 25_000: 81.0}, message="x" * 300, device="A device with a name that goes on " * 5)
    add_run("y" * 120, 0, {0: 10.0, 25_000: 81.0})
    html = page.html(tmp_path, REPOSITORY, make_report(paper, collect(tmp_path)), [])
    measured, console = browse(html)
    assert long in html and console == []
    for each in measured:
        assert each["overflow"] <= 0 and each["sticking_out"] == [], each
