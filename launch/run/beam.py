"""--engine=beam: the jobs of a preparation on Apache Beam, and so on Dataflow, Flink or Spark.

A job is a function of its arguments and writes the same bytes wherever it runs: its shards, each under its own name
only when it is whole, and its record last. A runner that loses a worker does the job again, and one that does a job
twice at once renames the same bytes twice. The source and the directory to write must have one path on all workers
(NFS, or a bucket that is mounted).
"""

from paradigm.errors import UserError


def engine(flags):
    """The `engine` of t5like.prepare.prepare that runs jobs by these flags of Beam's, as in ["--runner=FlinkRunner"].

    Raises UserError where Beam is not there, and for a flag that it does not know.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError('--engine=beam needs Apache Beam: pip install -e ".[beam]" in the checkout') from error
    options = PipelineOptions(flags)
    if unknown := options.get_all_options(drop_default=True, retain_unknown_options=True).keys() - _known(options):
        raise UserError(f"--engine=beam: Beam knows no flag --{sorted(unknown)[0]}")

    def run(work, arguments):
        """work(*a) for each of the arguments, wherever; what is done is seen by the files that it left."""
        try:
            with beam.Pipeline(options=options) as pipeline:
                # Reshuffle: else a runner may fuse all of the list into the one bundle that makes it.
                _ = pipeline | beam.Create(arguments) | beam.Reshuffle() | beam.Map(lambda a: work(*a) and None)
        except Exception as error:
            text = " ".join(str(error).split())
            raise UserError(f"--engine=beam: a job failed: {text[:300]}; what is finished is kept") from error

    return run


def _known(options):
    return options.get_all_options(drop_default=True, retain_unknown_options=False).keys()
