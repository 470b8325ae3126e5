"""The web app behind `app.py`: services that know no Gradio, with thin tabs on top."""
