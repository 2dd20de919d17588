"""From a text and a template to `input_ids`: `encoder` is the way in."""
