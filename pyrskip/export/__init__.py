"""Write exports, from runs. Needs the training stack; what reads them is pyrskip.inference, which does
not."""
