def describe(run, data): return 'run'
def write(runs, output, seconds, measure=False): return 'table'
