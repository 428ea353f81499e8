"""How the page looks: theme and style sheet, all from files that gradio brings along, so nothing is fetched from elsewhere."""

import gradio as gr

STYLE = """
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; }
#title h1 { margin: .2rem 0 0; letter-spacing: -.02em; }
#title p { margin: .2rem 0 0; color: var(--body-text-color-subdued); }
.stage { position: relative; }
.stage .preview { position: absolute; inset: 0; z-index: 5; margin: 0; padding: 0; pointer-events: none; border: 0; background: none; }
.stage .preview:not(:has(img)) { display: none; }
.stage .preview, .stage .preview > *, .stage .preview .prose { height: 100%; }
.stage .preview img { width: 100%; height: 100%; margin: 0; object-fit: contain; background: var(--block-background-fill);
                      border: 1px solid var(--block-border-color); border-radius: var(--block-radius); }
.stage video { object-fit: contain; }
.status { min-height: 3.2rem; padding: 0 .2rem; font-size: var(--text-sm); line-height: 1.5; }
.status p { margin: 0; }
.status .notice { margin-top: .3rem; color: var(--body-text-color-subdued); }
.status progress { display: block; width: 100%; height: .35rem; margin: 0 0 .4rem; accent-color: var(--color-accent); }
"""


def theme():
    """Calm colours, a plain bundled font."""
    fonts = (gr.themes.LocalFont("IBM Plex Sans", weights=(400, 600)), "ui-sans-serif", "system-ui", "sans-serif")
    return gr.themes.Soft(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", radius_size="md", font=fonts)
