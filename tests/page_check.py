"""`make page-check`: pages in a real Chromium, light and dark, wide and narrow: axe-core's rules, boxes that lie outside.

    page_check.py PAGE... [--pictures FOLDER]

Exit code 1 if a page breaks a rule of axe-core (WCAG 2 A and AA, best practices), asks for the network, says
something on the console, or has text that is cut off without a box to scroll in.
"""

import argparse
import shutil
import sys
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SCHEMES, WIDTHS = ("light", "dark"), (1280, 390)
#: Elements wider than the window whose text nobody can scroll to
_OUTSIDE = """() => [...document.querySelectorAll('body *')].filter(e => {
  if (!e.textContent.trim() || e.closest('svg, details:not([open])')) return false;
  const box = e.getBoundingClientRect();
  if (box.width === 0 || box.right <= innerWidth + 1) return false;
  for (let p = e.parentElement; p; p = p.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(p).overflowX)) return false;
  return true;
}).slice(0, 5).map(e => e.tagName + ' ' + e.textContent.trim().slice(0, 60))"""


def find_browser() -> str:
    """Path of an installed Chromium."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        sys.exit("no Chromium is installed. On Debian: apt-get install chromium fonts-noto-cjk")
    return found


def findings(browser: Browser, page_path: Path, pictures: Path | None) -> list[str]:
    """What is wrong with a page, a line each, over both color schemes and widths."""
    found: list[str] = []
    for scheme in SCHEMES:
        for width in WIDTHS:
            where = f"{page_path.name}, {scheme}, {width} px"
            # the pages' own policy forbids scripts; the judge's has to run
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True
            )
            page = context.new_page()
            requests: list[str] = []
            said: list[str] = []
            page.on("request", lambda request, into=requests: into.append(request.url))
            page.on("console", lambda message, into=said: into.append(message.text[:200]))
            page.goto(page_path.resolve().as_uri())
            for rule in Axe().run(page).response["violations"]:
                places = ", ".join(str(node["target"][0]) for node in rule["nodes"][:3])
                found.append(
                    f"{where}: {rule['id']} ({rule['impact']}): {rule['help']}; {len(rule['nodes'])}: {places}"
                )
            found += [
                f"{where}: asks for {url}" for url in requests if not url.startswith(("file:", "data:"))
            ]
            found += [f"{where}: console: {text}" for text in said]
            found += [f"{where}: cut off: {text}" for text in page.evaluate(_OUTSIDE)]
            if pictures is not None:
                pictures.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=pictures / f"{page_path.stem}-{scheme}-{width}.png", full_page=True)
            context.close()
    return found


def main() -> None:
    """Check the pages named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder for a screenshot of each")
    asked = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        found = [line for path in asked.pages for line in findings(browser, path, asked.pictures)]
        browser.close()
    print("\n".join(found))
    print(
        f"{len(asked.pages)} pages, {len(SCHEMES)} color schemes, {len(WIDTHS)} widths: {len(found)} findings"
    )
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
