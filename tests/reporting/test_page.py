"""The page of a report: that it needs nothing else, and what a click does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from helpers import command
from made_up import write

from mergestream.runtime import files


class Links(HTMLParser):
    """Everything that a page would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "action") and value]


def test_the_page_needs_no_network(made_up_root):
    assert command("report.py", f"root={made_up_root}").code == 0
    text = (made_up_root / "_report/report.html").read_text()
    text = re.sub(r'<a href="https://[^"]+">', "", text)  # of papers, for readers who are online
    links = Links()
    links.feed(text)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links.found)
    assert sum(link.startswith("data:") for link in links.found) == 4
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|https?://", text)


BROWSER = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
CLICKS = """<script>
const wait = () => new Promise(resolve => setTimeout(resolve, 50));
addEventListener("load", async () => {
  while (!document.querySelector("#runs tbody tr")) await wait();
  const results = document.getElementById("results"), runs = document.getElementById("runs"), said = {};
  const names = place => [...place.querySelectorAll("tbody tr")].map(row => row.children[0].textContent);
  const type = (place, words) => {
    const field = place.querySelector("input"); field.value = words; field.dispatchEvent(new Event("input"));
  };
  said.before = names(results);
  const head = [...results.querySelectorAll("th")].find(cell => cell.dataset.key === "final_accuracy");
  head.click();
  said.after = names(results);
  said.sorted = head.getAttribute("aria-sort");
  const scale = results.querySelector("th[data-key=scale] button"); scale.click(); scale.click();
  said.scales = [...results.querySelectorAll("tbody tr")].map(row => row.children[5].textContent);
  type(results, "joint 3");
  results.querySelector("tbody tr").click();
  said.borrowed = names(runs);
  type(results, "maxabs 0.7");
  said.filtered = names(results);
  results.querySelector("tbody tr").click();
  said.runs = names(runs);
  runs.querySelector("tbody tr").click();
  await wait();
  said.detail = document.getElementById("detail").innerText;
  said.overview = document.getElementById("overview").hidden;
  document.body.replaceChildren(JSON.stringify(said));
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_sorting_and_filtering_in_a_browser(made_up_root, tmp_path):
    write(made_up_root, "joint", 1, 0.1)  # the last row; it stands at three tasks too, where another run is
    write(made_up_root, "ewc", 1, 0.2, tasks=3)
    selected = write(made_up_root, "ewc", 1, 0.3, "magmax", tasks=3) / "metrics.json"
    content = files.read_json(selected)
    files.write_json(selected, {**content, "merge": {**content["merge"], "selected_on": "validation"}})
    assert command("report.py", f"root={made_up_root}").code == 0
    page = tmp_path / "clicked.html"
    page.write_text((made_up_root / "_report/report.html").read_text().replace("</html>", CLICKS + "</html>"))
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    arguments += ["--virtual-time-budget=20000", "--dump-dom", f"file://{page}"]
    shown = subprocess.run([BROWSER, *arguments], capture_output=True, text=True, timeout=120).stdout
    said = json.loads(
        re.search(r"<body>(\{.*\})</body>", shown, re.DOTALL)[1].replace("&lt;", "<").replace("&gt;", ">")
    )
    assert len(said["before"]) == 14
    assert said["before"][0] == "MaxAbs, λ = 0.5"
    assert said["after"] == said["before"][::-1]
    assert said["sorted"] == "ascending"
    assert said["scales"] == ["0.3", "0.3", "0.5", "0.5", "0.7", "0.7", "1", "1", "on validation", "", "", "", "", ""]
    assert said["borrowed"] == ["Joint"]
    assert said["filtered"] == ["MaxAbs, λ = 0.7"]
    assert said["runs"] == ["MaxAbs, λ = 0.7"] * 3
    assert said["overview"] is True
    assert "seed" in said["detail"]
    assert "zero-shot" in said["detail"]
