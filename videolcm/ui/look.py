"""How the page looks: theme and style sheet, all from files that gradio brings along, so nothing is fetched from elsewhere."""

import gradio as gr

STYLE = """
.gradio-container { width: 100%; max-width: 1100px !important; margin: 0 auto !important; }
#title h1 { margin: .2rem 0 0; letter-spacing: -.02em; }
#title p { margin: .2rem 0 0; color: var(--body-text-color-subdued); }
.upload :is(video, img) { display: block; width: 100%; max-height: 230px; object-fit: contain; border-radius: var(--block-radius); }
.stage { position: relative; }
.stage > .preview { position: absolute; inset: 0; z-index: 5; margin: 0; padding: 0; pointer-events: none; border: 0; background: none; }
.stage > .preview:not(:has(img)) { display: none; }
.stage > .preview * { height: 100%; padding: 0; }
.stage > .preview img { width: 100%; margin: 0; object-fit: contain; background: var(--block-background-fill);
                        border-radius: var(--block-radius); }
.stage video { object-fit: contain; }
.status { min-height: 3.4rem; padding: 0 .2rem !important; font-size: var(--text-sm); line-height: 1.5; }
.status p { margin: 0; }
.status .notice { margin-top: .3rem; color: var(--body-text-color-subdued); }
.status progress { display: block; width: 100%; height: .3rem; margin: 0 0 .4rem; border: 0; border-radius: .15rem; overflow: hidden;
                   appearance: none; background: var(--border-color-primary); }
.status progress::-webkit-progress-bar { background: var(--border-color-primary); }
.status progress::-webkit-progress-value { background: var(--color-accent); }
.status progress::-moz-progress-bar { background: var(--color-accent); }
#compare .status { min-height: 2.2rem; padding: 0 !important; }
#compare .go { gap: .5rem; justify-content: stretch; }
#compare .go button { flex: 1; }
#compare .ways label { padding: .25rem .5rem; }
#compare .legend { font-size: var(--text-xs); color: var(--body-text-color-subdued); }
#compare .legend :is(p, em, span) { margin: 0; font-size: inherit !important; color: inherit; }
#player, .quality, #player .html-container, .quality .html-container { padding: 0 !important; }
.plot { display: block; width: 100%; font-size: 11px; fill: var(--body-text-color-subdued); }
.plot .grid { stroke: var(--border-color-primary); }
"""


def theme():
    """Calm colours with enough contrast to read, a plain bundled font."""
    # gradio's semi-bold files lack most letters
    fonts = (gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif")
    soft = gr.themes.Soft(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", radius_size="md", font=fonts)
    return soft.set(
        background_fill_primary="*neutral_50",  # Soft's own, which set() forgets
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_padding="0",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_300",
        block_title_text_weight="700",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_label_background_fill="*neutral_50",
        block_label_text_weight="700",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_700",
    )
