"""All pages: readable by everybody, on every screen."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

PAGES = ("/", "/watch", "/library", "/try", "/kernels")
SCREENS = {"desk": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}


def settled(page):
    """Waits until the page's handlers have answered."""
    page.wait_for_timeout(1500)
    expect(page.locator(".generating, .pending")).to_have_count(0)


NAMELESS = (
    "[...document.querySelectorAll('input, textarea, button')].filter(e => e.checkVisibility() && "
    "!(e.labels && e.labels.length) && !e.ariaLabel && !e.getAttribute('aria-labelledby') && !e.title && "
    "!e.textContent.trim() && !e.closest('label')).map(e => e.outerHTML.slice(0, 200))"
)
"""Fields and buttons of a page that have no name."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_accessible_and_fits_its_screen(started_home, page_at, path, scheme):
    page = page_at(started_home, path, viewport=SCREENS["desk"], color_scheme=scheme)
    settled(page)
    assert page.evaluate(NAMELESS) == []
    for screen in SCREENS.values():
        page.set_viewport_size(screen)
        page.wait_for_timeout(500)
        found = Axe().run(page).response["violations"]
        assert [
            (one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")
        ] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= screen["width"]
