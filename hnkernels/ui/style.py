"""How the page looks: a theme of the system's own fonts, and what it lacks."""

from __future__ import annotations

import gradio as gr

HEAD = '<meta name="color-scheme" content="light dark">'

BUTTON = 180
"""The least width of a button on a line of its own, in pixels."""

CSS = """
.gradio-container { width: 100% !important; max-width: 1200px !important; margin: 0 auto !important; }
footer { display: none !important; }
[role=tab][aria-selected=true] { color: var(--body-text-color) !important; }
.sentence p { margin: 0; }
.fault, .faulty .info-text { color: #b91c1c !important; }
.dark .fault, .dark .faulty .info-text { color: #fca5a5 !important; }
.faulty { outline: 2px solid #dc2626; }
button[role="tab"].selected { color: #c2410c !important; }
.dark button[role="tab"].selected { color: #fdba74 !important; }
.wide { overflow-x: auto; }
.wide table { width: 100%; border-collapse: collapse; border: none; }
.wide th, .wide td {
  text-align: left !important; padding: 0.35rem 0.75rem 0.35rem 0 !important;
  border: none !important; border-bottom: 1px solid #8884 !important;
}
.wide tr { background: none !important; }
#facts p { margin: 0.25rem 0; }
#facts pre { white-space: pre-wrap; font-size: 0.8125rem; padding: 0.5rem; border: 1px solid #8886; }
.picture { max-width: 100%; height: 15rem; object-fit: contain; image-rendering: pixelated; }
.strip { display: flex; flex-wrap: wrap; gap: 0.75rem; }
.strip figure { margin: 0; font-size: 0.875rem; }
.strip .picture { height: 6rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1rem; }
.curves figure { margin: 0; }
.curves figcaption { font-weight: 600; }
.curves svg { width: 100%; height: auto; }
.curves .legend { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; font-size: 0.875rem; }
.curves .swatch { display: inline-block; width: 1.5em; height: 0.25em; vertical-align: middle; margin-right: 0.4em; }
"""


def theme() -> gr.themes.Base:
    """Gradio's own look in the system's fonts: nothing is fetched."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
    look = gr.themes.Default(font=fonts, font_mono=mono)
    # Gradio's grey and its orange do not stand out enough: WCAG AA asks for 4.5 to 1.
    return look.set(
        body_text_color_subdued="#52525b",
        body_text_color_subdued_dark="#c4c4cc",
        button_primary_background_fill="#c2410c",
        button_primary_background_fill_dark="#c2410c",
        button_primary_background_fill_hover="#9a3412",
        button_primary_background_fill_hover_dark="#9a3412",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_dark="#b91c1c",
    )
