"""Who says what a picture shows, behind one small interface."""
