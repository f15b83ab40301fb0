"""What the scripts share: configuration, data, training, measurements, records, tables, plots."""
