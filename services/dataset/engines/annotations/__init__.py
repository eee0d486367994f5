"""Annotated images in the formats of labelling tools and detectors, one module a format.

Argosy's form of an annotated image is a row with `image` (its name), `width` and `height` in pixels, and `objects`, a
list of objects with `label` and `box` ([x, y, width, height] in pixels from the top left corner) and whatever else is
known of them. Answers about a whole image or text are in `choices` and `texts`, lists of texts by the name of the
question. `categories` in one row names the labels that may be used, in order, where the objects do not tell them.
"""
