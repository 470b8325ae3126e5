"""The studio's colours and shapes, light and dark; fonts are the system's own."""

import gradio as gr

_ACCENT = gr.themes.Color(
    name="lagoon",
    c50="#eef8f6", c100="#d6eee9", c200="#aeddd4", c300="#7cc5b9", c400="#4ba89b",
    c500="#2c8a7e", c600="#1f7167", c700="#1b5b54", c800="#194945", c900="#163d3a", c950="#0a2422",
)  # fmt: skip
_NEUTRAL = gr.themes.Color(
    name="graphite",
    c50="#faf9f7", c100="#f3f2ee", c200="#e6e4de", c300="#d2cfc7", c400="#a3a099",
    c500="#77746e", c600="#585650", c700="#3d3c39", c800="#272728", c900="#1c1d1f", c950="#141517",
)  # fmt: skip
_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SF Mono", "Cascadia Mono", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """The theme to launch with."""
    return gr.themes.Base(
        primary_hue=_ACCENT,
        secondary_hue=_ACCENT,
        neutral_hue=_NEUTRAL,
        spacing_size=gr.themes.sizes.spacing_md,
        radius_size=gr.themes.sizes.radius_lg,
        font=_SANS,
        font_mono=_MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_800",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_800",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="600",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_700",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_950",
        input_border_color="*neutral_200",
        input_border_color_dark="*neutral_700",
        input_border_color_focus="*primary_400",
        input_border_color_focus_dark="*primary_500",
        input_shadow_focus="0 0 0 3px rgb(75 168 155 / 18%)",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_cancel_background_fill="#b4493c",
        button_cancel_background_fill_hover="#9a3d32",
        button_cancel_background_fill_dark="#a84a3f",
        button_cancel_background_fill_hover_dark="#c05a4e",
        button_cancel_text_color="white",
        checkbox_border_color_dark="*neutral_500",
        slider_color="*primary_500",
        slider_color_dark="*primary_400",
    )
