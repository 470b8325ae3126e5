"""The pages' tabs: layout and handlers, the only part of the studio that knows Gradio."""
