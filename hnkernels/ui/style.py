"""How the page looks: a theme of the system's own fonts, and what it lacks."""

from __future__ import annotations

import gradio as gr

HEAD = '<meta name="color-scheme" content="light dark">'

CSS = """
.gradio-container { width: 100% !important; max-width: 1200px !important; margin: 0 auto !important; }
footer { display: none !important; }
.sentence p { margin: 0; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 1rem; }
.curves figure { margin: 0; }
.curves figcaption { font-weight: 600; }
.curves svg { width: 100%; height: auto; }
.curves .legend { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; font-size: 0.875rem; }
.curves .swatch { display: inline-block; width: 1.5em; height: 0.25em; vertical-align: middle; margin-right: 0.4em; }
.wide { overflow-x: auto; }
#runs table { width: 100%; border-collapse: collapse; }
#runs th, #runs td { text-align: left; padding: 0.35rem 0.75rem 0.35rem 0; border-bottom: 1px solid #8884; }
#facts p { margin: 0.25rem 0; }
#facts pre { white-space: pre-wrap; font-size: 0.8125rem; padding: 0.5rem; border: 1px solid #8886; }
.fault { color: var(--error-text-color, #b91c1c); }
"""


def theme() -> gr.themes.Base:
    """Gradio's own look in the system's fonts: nothing is fetched."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    return gr.themes.Default(font=fonts, font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"))
