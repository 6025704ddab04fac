"""`pix2seq app`: a web page that shows what a model finds; `page` is the only file that knows gradio's components."""
