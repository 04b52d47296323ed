"""An Airflow DAG: every night eight pods, one per shard, then one pod that publishes.

For Airflow 3 and its provider `apache-airflow-providers-cncf-kubernetes`. It was never run: its syntax and
the shards' command lines are tested. Make the two pod templates from the Jobs in `indexed-job.yaml`: in each,
`apiVersion: v1`, `kind: Pod`, and the `metadata` and `spec` that the Job has under `template`. The namespace
is the one with the claims of `volumes.yaml`.

A retry resumes where the shard stopped. Airflow also retries exit code 2, which a retry cannot mend: that
costs seconds, as such a run ends before it starts an engine. `skip_on_exit_code` is no remedy: the night
would count as a success.
"""

from datetime import datetime, timedelta

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG

SHARDS = 8
INPUT, OUTPUT = "/data/requests-{{ ds }}.parquet", "/data/routed-{{ ds }}"
POD = {
    "image": "batch-route:0.1.0",
    "namespace": "batch-route",
    "on_finish_action": "delete_succeeded_pod",
}

with DAG(
    dag_id="batch_route",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
) as dag:
    shards = KubernetesPodOperator.partial(
        task_id="shard",
        pod_template_file="/opt/airflow/pods/shard.yaml",  # from the Job batch-route-shards
        cmds=["batch-route"],
        retries=4,
        retry_delay=timedelta(minutes=1),
        **POD,
    ).expand(arguments=[[INPUT, OUTPUT, f"--shard={index}/{SHARDS}"] for index in range(SHARDS)])

    commit = KubernetesPodOperator(
        task_id="commit",
        pod_template_file="/opt/airflow/pods/commit.yaml",  # from the Job batch-route-commit
        cmds=["batch-route"],
        arguments=["commit", OUTPUT],
        retries=2,
        **POD,
    )

    shards >> commit
