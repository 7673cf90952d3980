"""The pages of runs: what they say, also of half-dead runs, and how they look in a real browser."""

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from netprism.cli.main import main
from netprism.figures.projection import Scatter, page
from netprism.report import Run, find_runs, write_comparison, write_report
from netprism.report.advice import warnings
from netprism.report.charts import turnable
from netprism.report.comparison import differing
from netprism.report.words import headlines, meaning

CONFIG = "seed_everything: {seed}\nmodel:\n  class_path: a.Net\n  init_args: {{depth: {depth}, num_classes: 4}}\n"


def make_run(folder, seed=0, depth=8, rows="", finished=True):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(seed=seed, depth=depth))
    (folder / "git.txt").write_text("netprism 0.1.0\ncommit abc\n")
    (folder / "metrics.csv").write_text(
        "epoch,step,gates/entropy,gates/saturation,gates/entropy/a,gates/entropy/b,gates/entropy/c,gates/entropy/d,val/accuracy\n"
        f"-1,0,3,.3,1,1,1,1,\n0,10,{4 + seed},.4,1,2,3,.001,.5\n1,20,5,.95,1,2,3,.001,.{90 + seed}\n" + rows
    )
    if finished:
        (folder / "finished.txt").touch()
    return folder


def with_pictures(folder):
    torch = pytest.importorskip("torch")
    for epoch in ("start", "epoch_000", "epoch_001"):
        (folder / "maps" / epoch).mkdir(parents=True)
        Image.fromarray(np.full((40, 60, 3), len(epoch), np.uint8)).save(folder / "maps" / epoch / "SID.png")
    frames = [Scatter(torch.randn(20, 3), torch.arange(20) % 2, torch.eye(3)[:2], f"epoch {e}") for e in range(2)]
    page(frames, folder / "figures" / "film.html")
    (folder / "figures" / "broken.png").write_bytes(b"\x89PNG half a fi")
    return folder


def charts(path):
    text = path.read_text()
    start = text.index("const CHARTS = ") + len("const CHARTS = ")
    return {chart["title"]: chart for chart in json.JSONDecoder().raw_decode(text, start)[0]}


def test_the_page_has_the_numbers_of_the_run(tmp_path):
    path = write_report(with_pictures(make_run(tmp_path / "run")))
    assert path == tmp_path / "run" / "report.html"
    assert path.stat().st_size < 10e6
    found = charts(path)
    assert found["val/accuracy"]["data"][0] | {"x": [0, 1], "y": [0.5, 0.9]} == found["val/accuracy"]["data"][0]
    assert [line["name"] for line in found["gates/entropy"]["data"]] == ["all", "a", "b", "c", "d"]
    heat = found["gates/entropy: layers by epochs"]["data"][0]
    assert heat["z"] == [[1, 1, 1], [1, 2, 2], [1, 3, 3], [1, 0.001, 0.001]]
    assert len(found["film"]["frames"]) == 2
    text = path.read_text()
    assert text.count('data-of="maps-1"') == 3
    assert "broken" not in text.split("<script>")[0]
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text.split("<script>")[0]), "another file"


def test_a_run_that_died_with_nan_has_a_page(tmp_path):
    folder = make_run(tmp_path / "run", rows="2,30,nan,inf,1,2,3,,\n3,40,5", finished=False)
    said = warnings(Run(folder))
    assert said[0] == f"The training did not end. Continue it with: make resume RUN={folder}"
    assert any("gates/entropy is NaN or infinite in epoch 2" in line for line in said)
    assert charts(write_report(folder))["gates/entropy"]["data"][0]["y"] == [3, 4, 5, None, 5]


def test_half_a_config_and_no_row_are_no_reason_to_fail(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "metrics.csv").write_text("epoch,step\n")
    (folder / "config.yaml").write_text("model: {class_path: [")
    assert "Nothing was logged" in write_report(folder).read_text()
    with pytest.raises(FileNotFoundError, match="expected a folder with metrics.csv"):
        write_report(tmp_path)


def test_warnings_tell_what_to_do(tmp_path):
    folder = make_run(tmp_path / "run")
    first, second = warnings(Run(folder))
    assert "95%" in first
    assert "num_images" in first
    assert second == "All images open the same gates in d: the layer is dead or linear for these images."


def test_text_of_a_run_cannot_become_markup(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "metrics.csv").write_text("epoch,step,</script><script>alert(1)</script>\n0,1,2\n")
    (folder / "git.txt").write_text("<img src=x onerror=alert(1)>")
    text = write_report(folder).read_text()
    assert "<script>alert" not in text
    assert "<img src=x" not in text


def test_headlines_come_first_and_stand_for_layers_where_there_is_no_whole():
    keys = ["gates/entropy", "gates/entropy/a", "discarding/SID/a", "discarding/SID/b", "discarding/SID/c", "lr-Adam"]
    assert headlines(keys) == ["gates/entropy", "discarding/SID/a", "discarding/SID/c"]
    assert meaning("gates/test/entropy/a") == meaning("gates/entropy")
    assert meaning("val_accuracy").headline
    assert not meaning("lr-Adam").text


def test_seeds_share_a_colour_and_a_mean(tmp_path):
    runs = [Run(make_run(tmp_path / f"{d}-{s}", s, d)) for d in (8, 14) for s in (0, 1)]
    labels = {run.folder.name: run for run in runs}
    assert set(differing(labels)) == {"seed_everything", "model.depth"}
    lines = charts(write_comparison(runs, tmp_path / "c.html"))["gates/entropy"]["data"]
    means = {line["name"]: line for line in lines if line["name"].endswith("mean of 2")}
    assert list(means) == ["depth 8, mean of 2", "depth 14, mean of 2"]
    assert means["depth 8, mean of 2"]["y"] == [3, 4.5, 5]
    assert len({line["line"]["color"] for line in lines if line.get("fill") is None}) == 2


def test_runs_are_found_by_folder_glob_and_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        make_run(tmp_path / "runs" / "quick" / str(number))
    assert [run.name for run in find_runs(["quick"])] == ["quick/0", "quick/1"]
    assert [run.name for run in find_runs(["runs/quick/*", "quick/1"])] == ["quick/0", "quick/1"]
    with pytest.raises(FileNotFoundError, match="run is 'nope'; expected a folder"):
        find_runs(["nope"])
    with pytest.raises(ValueError, match="number of runs is 1"):
        write_comparison(find_runs(["quick/0"]), tmp_path / "c.html")


def test_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        make_run(tmp_path / "runs" / "quick" / str(number), seed=number)
    main(["report", "quick/0"])
    main(["compare", "quick"])
    assert capsys.readouterr().out.split() == ["report", "runs/quick/0/report.html", "comparison", "compare.html"]


def test_a_figure_is_found_in_a_page_of_plotly():
    figure = go.Figure(go.Scatter3d(x=[1], y=[2], z=[3]))
    assert turnable(figure.to_html(), "t")["data"][0]["type"] == "scatter3d"
    assert turnable("<p>nothing", "t") is None


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("there is no chromium with chromedriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "enable-unsafe-swiftshader", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync", "window-size=1200,1000",
        f"user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_in_a_real_browser_slider_and_space_work_and_nothing_leaves_the_machine(tmp_path, browser):
    browser.get(write_report(with_pictures(make_run(tmp_path / "run"))).as_uri())
    wait_for(lambda: browser.execute_script("return document.querySelectorAll('.chart .main-svg').length") > 0)
    slider = "document.querySelector('input[data-frames]')"
    browser.execute_script(f"{slider}.focus()")
    browser.switch_to.active_element.send_keys("\ue012")  # the left arrow key
    shown = "return [...document.querySelectorAll('img[data-of]')].filter(i => !i.hidden).map(i => i.dataset.epoch)"
    assert "epoch 000" in browser.execute_script(shown)
    space = "[...document.querySelectorAll('.chart')].find(is3d)"
    browser.execute_script(f"{space}.scrollIntoView()")
    wait_for(lambda: browser.execute_script(f"return !!({space}._fullLayout && {space}._fullLayout.scene._scene)"))
    wait_for(lambda: browser.execute_script(f"return {space}._transitionData._frames.length === 2"))
    browser.execute_script(f"Plotly.relayout({space}, {{'scene.camera.eye': {{x: 2, y: 0, z: 0}}}})")
    assert browser.execute_script(f"return {space}.layout.scene.camera.eye.x") == 2
    browser.execute_script("document.querySelector('details.numbers').open = true")
    wait_for(lambda: browser.execute_script("return document.querySelectorAll('details.numbers td').length") > 0)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if url.startswith(("http", "ws", "//"))] == []


def test_reports_are_not_left_half_written(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    write_report(folder)
    before = (folder / "report.html").read_bytes()

    def full_disk(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match=r"report.html"):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before
