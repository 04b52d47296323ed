"""An Airflow DAG: every night eight pods, a shard each, then one that publishes.

For Airflow 3 and its provider `apache-airflow-providers-cncf-kubernetes`. The pods' volumes, GPU and
security are those of `indexed-job.yaml`, as pod templates.
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
        pod_template_file="/opt/airflow/pods/shard.yaml",  # with a GPU, adapters and the base model
        cmds=["batch-route"],
        retries=4,  # a retry goes on where the shard stopped, whatever stopped it
        retry_delay=timedelta(minutes=1),
        **POD,
    ).expand(arguments=[[INPUT, OUTPUT, f"--shard={index}/{SHARDS}"] for index in range(SHARDS)])

    commit = KubernetesPodOperator(
        task_id="commit",
        pod_template_file="/opt/airflow/pods/commit.yaml",  # with the data alone
        cmds=["batch-route"],
        arguments=["commit", OUTPUT],
        retries=2,
        **POD,
    )

    shards >> commit
